use super::*;

/// Bodies as providers send them: (who, status, body, class).
static BODIES: &[(&str, u16, &str, Class)] = &[
    (
        "openai",
        401,
        r#"{"error":{"message":"Incorrect API key provided: sk-ab*****wxyz.","type":"invalid_request_error","param":null,"code":"invalid_api_key"}}"#,
        Class::Auth,
    ),
    (
        "openai, no key",
        401,
        r#"{"error":{"message":"You didn't provide an API key.","type":"invalid_request_error","param":null,"code":null}}"#,
        Class::Auth,
    ),
    (
        "openai, country",
        403,
        r#"{"error":{"code":"unsupported_country_region_territory","message":"Country, region, or territory not supported","param":null,"type":"request_forbidden"}}"#,
        Class::Auth,
    ),
    (
        "openai",
        429,
        r#"{"error":{"message":"Rate limit reached for gpt-4o in organization org-x on requests per min (RPM): Limit 3, Used 3, Requested 1.","type":"requests","param":null,"code":"rate_limit_exceeded"}}"#,
        Class::RateLimit,
    ),
    (
        "openai",
        429,
        r#"{"error":{"message":"You exceeded your current quota, please check your plan and billing details.","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#,
        Class::Quota,
    ),
    (
        "openai, never fits",
        429,
        r#"{"error":{"message":"Request too large for gpt-4o in organization org-x on tokens per min (TPM): Limit 30000, Requested 40000.","type":"tokens","param":null,"code":"rate_limit_exceeded"}}"#,
        Class::TooLarge,
    ),
    (
        "openai",
        400,
        r#"{"error":{"message":"This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens.","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}"#,
        Class::ContextLength,
    ),
    (
        "openai",
        400,
        r#"{"error":{"message":"Your request was rejected as a result of our safety system.","type":"invalid_request_error","param":null,"code":"content_policy_violation"}}"#,
        Class::ContentPolicy,
    ),
    (
        "openai",
        404,
        r#"{"error":{"message":"The model `gpt-9` does not exist or you do not have access to it.","type":"invalid_request_error","param":null,"code":"model_not_found"}}"#,
        Class::NotFound,
    ),
    (
        "openai",
        400,
        r#"{"error":{"message":"Missing required parameter: 'messages'.","type":"invalid_request_error","param":"messages","code":"missing_required_parameter"}}"#,
        Class::BadRequest,
    ),
    (
        "openai",
        400,
        r#"{"error":{"message":"Billing hard limit has been reached","type":"invalid_request_error","param":null,"code":"billing_hard_limit_reached"}}"#,
        Class::Quota,
    ),
    (
        "openai",
        500,
        r#"{"error":{"message":"The server had an error while processing your request. Sorry about that!","type":"server_error","param":null,"code":null}}"#,
        Class::Upstream,
    ),
    (
        "openai",
        503,
        r#"{"error":{"message":"The engine is currently overloaded, please try again later.","type":"server_error","param":null,"code":null}}"#,
        Class::Overloaded,
    ),
    (
        "azure",
        400,
        r#"{"error":{"message":"The response was filtered due to the prompt triggering Azure OpenAI's content management policy.","type":null,"param":"prompt","code":"content_filter","status":400,"innererror":{"code":"ResponsibleAIPolicyViolation","content_filter_result":{"hate":{"filtered":true,"severity":"high"}}}}}"#,
        Class::ContentPolicy,
    ),
    (
        "azure, inner only",
        400,
        r#"{"error":{"message":"Filtered.","code":"BadRequest","innererror":{"code":"ResponsibleAIPolicyViolation"}}}"#,
        Class::ContentPolicy,
    ),
    (
        "azure",
        404,
        r#"{"error":{"code":"DeploymentNotFound","message":"The API deployment for this resource does not exist."}}"#,
        Class::NotFound,
    ),
    (
        "azure",
        429,
        r#"{"error":{"code":"429","message":"Requests to the ChatCompletions_Create Operation have exceeded token rate limit of your current OpenAI S0 pricing tier."}}"#,
        Class::RateLimit,
    ),
    (
        "azure",
        401,
        r#"{"statusCode":401,"message":"Unauthorized. Access token is missing, invalid, or expired."}"#,
        Class::Auth,
    ),
    (
        "anthropic",
        529,
        r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"},"request_id":"req_1"}"#,
        Class::Overloaded,
    ),
    (
        "anthropic",
        401,
        r#"{"type":"error","error":{"type":"authentication_error","message":"invalid x-api-key"}}"#,
        Class::Auth,
    ),
    (
        "anthropic",
        429,
        r#"{"type":"error","error":{"type":"rate_limit_error","message":"This request would exceed your organization's rate limit"}}"#,
        Class::RateLimit,
    ),
    (
        "anthropic",
        400,
        r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 208310 tokens > 200000 maximum"}}"#,
        Class::ContextLength,
    ),
    (
        "anthropic",
        400,
        r#"{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low to access the Anthropic API."}}"#,
        Class::Quota,
    ),
    (
        "anthropic",
        400,
        r#"{"type":"error","error":{"type":"invalid_request_error","message":"messages: field required"}}"#,
        Class::BadRequest,
    ),
    (
        "anthropic",
        413,
        r#"{"type":"error","error":{"type":"request_too_large","message":"Request exceeds the maximum size"}}"#,
        Class::TooLarge,
    ),
    (
        "anthropic",
        500,
        r#"{"type":"error","error":{"type":"api_error","message":"Internal server error"}}"#,
        Class::Upstream,
    ),
    (
        "gemini",
        400,
        r#"[{"error":{"code":400,"message":"API key not valid. Please pass a valid API key.","status":"INVALID_ARGUMENT","details":[{"reason":"API_KEY_INVALID"}]}}]"#,
        Class::Auth,
    ),
    (
        "gemini",
        429,
        r#"{"error":{"code":429,"message":"Resource has been exhausted (e.g. check quota).","status":"RESOURCE_EXHAUSTED"}}"#,
        Class::RateLimit,
    ),
    (
        "gemini",
        503,
        r#"{"error":{"code":503,"message":"The model is overloaded. Please try again later.","status":"UNAVAILABLE"}}"#,
        Class::Overloaded,
    ),
    (
        "gemini",
        400,
        r#"{"error":{"code":400,"message":"The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).","status":"INVALID_ARGUMENT"}}"#,
        Class::ContextLength,
    ),
    (
        "vllm",
        400,
        r#"{"object":"error","message":"This model's maximum context length is 4096 tokens. However, you requested 5000 tokens.","type":"BadRequestError","param":null,"code":400}"#,
        Class::ContextLength,
    ),
    (
        "vllm",
        404,
        r#"{"object":"error","message":"The model `x` does not exist.","type":"NotFoundError","param":null,"code":404}"#,
        Class::NotFound,
    ),
    ("vllm, path", 404, r#"{"detail":"Not Found"}"#, Class::NotFound),
    (
        "ollama",
        404,
        r#"{"error":{"message":"model \"x\" not found, try pulling it first","type":"api_error","param":null,"code":null}}"#,
        Class::NotFound,
    ),
    ("ollama, native", 404, r#"{"error":"model 'x' not found"}"#, Class::NotFound),
    (
        "llama.cpp",
        400,
        r#"{"error":{"code":400,"message":"the request exceeds the available context size. try increasing the context size","type":"exceed_context_size_error","n_prompt_tokens":700,"n_ctx":512}}"#,
        Class::ContextLength,
    ),
    (
        "tgi",
        422,
        r#"{"error":"Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens","error_type":"validation"}"#,
        Class::ContextLength,
    ),
    (
        "groq",
        413,
        r#"{"error":{"message":"Request too large for model `x` on tokens per minute (TPM): Limit 6000, Requested 9000","type":"tokens","code":"rate_limit_exceeded"}}"#,
        Class::TooLarge,
    ),
    (
        "groq, other words",
        413,
        r#"{"error":{"message":"Too many tokens","code":"rate_limit_exceeded"}}"#,
        Class::TooLarge,
    ),
    ("groq", 498, r#"{"error":{"message":"Flex tier capacity exceeded"}}"#, Class::Overloaded),
    (
        "mistral",
        422,
        r#"{"object":"error","message":{"detail":[{"loc":["body","messages"],"msg":"field required"}]},"type":"invalid_request_error","param":null,"code":null}"#,
        Class::BadRequest,
    ),
    (
        "mistral",
        400,
        r#"{"object":"error","message":"Invalid model: x","type":"invalid_model","param":null,"code":"1500"}"#,
        Class::NotFound,
    ),
    (
        "deepseek",
        402,
        r#"{"error":{"message":"Insufficient Balance","type":"unknown_error","param":null,"code":"invalid_request_error"}}"#,
        Class::Quota,
    ),
    ("a proxy", 502, "<html><body>502 Bad Gateway</body></html>", Class::Upstream),
    ("a proxy", 504, "", Class::Timeout),
    ("cloudflare", 524, "error code: 524", Class::Timeout),
    ("a redirect", 301, "", Class::Malformed),
    ("no error at all", 200, r#"{"object":"list"}"#, Class::Malformed),
    // A user who quotes an error is no error: only the beginning of a message counts.
    (
        "openai",
        400,
        r#"{"error":{"message":"Invalid value: 'This model's maximum context length is'","type":"invalid_request_error","param":"stop","code":"invalid_value"}}"#,
        Class::BadRequest,
    ),
    ("broken", 429, r#"{"error":{"message":"You exc"#, Class::RateLimit),
    (
        "nonsense",
        400,
        r#"{"error":{"message":[1],"code":{"a":1},"type":true,"innererror":7}}"#,
        Class::BadRequest,
    ),
];

#[test]
fn of_response_reads_what_providers_send() {
    for (who, status, body, class) in BODIES {
        let read = Class::of_response(StatusCode::from_u16(*status).unwrap(), body.as_bytes());
        assert_eq!(read, *class, "{who} {status}: {body}");
    }
}

#[test]
fn every_class_is_an_error_status_and_is_transient_only_where_the_status_is() {
    for class in [
        Class::Auth,
        Class::RateLimit,
        Class::Quota,
        Class::Timeout,
        Class::Connect,
        Class::ContextLength,
        Class::ContentPolicy,
        Class::BadRequest,
        Class::TooLarge,
        Class::NotFound,
        Class::Upstream,
        Class::Overloaded,
        Class::Malformed,
    ] {
        assert!(class.status().is_client_error() || class.status().is_server_error());
        let by_status = bartizan_core::headers::is_transient(class.status());
        assert_eq!(class.is_transient(), by_status && class != Class::Quota, "{class}");
    }
}
