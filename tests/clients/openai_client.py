"""What somebody's program would do with OpenAI's own client.

    openai_client.py SCENARIO MODEL

The client takes address and key from OPENAI_BASE_URL and OPENAI_API_KEY. What it sees is printed as one JSON object a
line, the version of the client first; tests/tests/clients.rs is the judge of it. An exception that is not the client's
own is a traceback and a failure.
"""

import asyncio
import json
import sys

import openai

SAY = [{"role": "user", "content": "Grüße aus dem Türmchen 🗼"}]
MANY = 20


def tell(**fields):
    print(json.dumps(fields), flush=True)


def tell_error(error):
    response = getattr(error, "response", None)
    headers = {} if response is None else response.headers
    tell(
        raised=[kind.__name__ for kind in type(error).__mro__ if issubclass(kind, openai.OpenAIError)],
        message=str(error),
        type=error.type,
        code=error.code,
        param=error.param,
        status=getattr(error, "status_code", None),
        retry_after=headers.get("retry-after"),
        should_retry=headers.get("x-should-retry"),
        attempts=headers.get("x-bartizan-attempts"),
        validation=headers.get("x-bartizan-validation"),
    )


def tell_event(event):
    choice = event.choices[0] if event.choices else None
    tell(
        id=event.id,
        model=event.model,
        delta=choice and choice.delta.content,
        finish=choice and choice.finish_reason,
        usage=event.usage and event.usage.model_dump(exclude_none=True),
    )


def chat(client, model):
    try:
        answer = client.chat.completions.create(model=model, messages=SAY)
    except openai.APIError as error:
        return tell_error(error)
    tell(
        model=answer.model,
        content=answer.choices[0].message.content,
        finish=answer.choices[0].finish_reason,
        usage=answer.usage.model_dump(exclude_none=True),
        request_id=answer._request_id,
    )


def impatient_chat(client, model):
    chat(client.with_options(timeout=0.3), model)


def persistent_chat(client, model):
    chat(client.with_options(max_retries=2), model)


def limited_chats(client, model):
    """One after the other until one too many, and then as somebody else."""
    for _ in range(3):
        chat(client, model)
    chat(client.with_options(default_headers={"x-tenant-id": "another"}), model)
    stream(client, model)
    tell(ids=[each.id for each in client.models.list()])


def chats_of_a_patient_client(client, model):
    for _ in range(2):
        persistent_chat(client, model)


def chats_at_once(_, model):
    asyncio.run(at_once(model))


async def at_once(model):
    async with openai.AsyncOpenAI(max_retries=0) as client:
        answers = [client.chat.completions.create(model=model, messages=SAY) for _ in range(4)]
        tell(contents=[answer.choices[0].message.content for answer in await asyncio.gather(*answers)])


def metered_chats(client, model):
    """What is left of the limit each time, as the head of the answer says."""
    chats = client.chat.completions.with_raw_response
    for options in [{}, {"stream": True, "stream_options": {"include_usage": True}}, {"stream": True}, {}]:
        answer = chats.create(model=model, messages=SAY, **options)
        if options:
            for _ in answer.parse():
                pass
        tell(remaining=int(answer.headers["x-ratelimit-remaining"]))


def chats_with_keys(client, model):
    chat(client, model)
    chat(client.with_options(api_key="sk-of-nobody"), model)
    try:
        client.with_options(api_key="sk-of-nobody").models.list()
    except openai.APIError as error:
        tell_error(error)


def chats_with_a_dying_upstream(client, model):
    for _ in range(3):
        chat(client, model)
    stream(client, model)
    # The judge lets it recover.
    sys.stdin.readline()
    persistent_chat(client, model)


def served(answer):
    tell(served_by=answer.headers.get("x-bartizan-served-by"), attempts=answer.headers.get("x-bartizan-attempts"))


def chats_with_fallbacks(client, model):
    """Plain and streamed, and who has answered; then as one who wants this model and no other."""
    chats = client.chat.completions.with_raw_response
    alone = client.with_options(default_headers={"x-bartizan-fallback": "off"})
    try:
        answer = chats.create(model=model, messages=SAY)
        served(answer)
        tell(content=answer.parse().choices[0].message.content)
    except openai.APIError as error:
        tell_error(error)
    stream_with_fallbacks(client, model)
    chat(alone, model)
    stream(alone, model)


def stream_with_fallbacks(client, model):
    try:
        answer = client.chat.completions.with_raw_response.create(model=model, messages=SAY, stream=True)
        served(answer)
        for event in answer.parse():
            tell_event(event)
    except openai.APIError as error:
        return tell_error(error)
    tell(ended=True)


def streams_with_fallbacks(client, model):
    """One each time the judge has told the upstreams what to do."""
    for _ in sys.stdin:
        stream_with_fallbacks(client, model)


def guarded(client, model, text, **more):
    """Plain and streamed: what the head says of rules that were broken, and then the text or the error."""
    for options in [{}, {"stream": True}]:
        messages = [{"role": "user", "content": text}]
        try:
            answer = client.chat.completions.with_raw_response.create(
                model=model, messages=messages, **options, **more
            )
            tell(validation=answer.headers.get("x-bartizan-validation"))
            if not options:
                tell(content=answer.parse().choices[0].message.content)
                continue
            for event in answer.parse():
                tell_event(event)
            tell(ended=True)
        except openai.APIError as error:
            tell_error(error)


def guarded_chats(client, _):
    """Of each model and text that the judge names."""
    for line in sys.stdin:
        asked = json.loads(line)
        guarded(client, asked["model"], asked["text"])


def structured_chats(client, model):
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    guarded(client, model, "How old is she?", response_format=form)


def long_chat(client, model):
    try:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "x" * 20_000_000}])
    except openai.APIError as error:
        tell_error(error)


def open_stream(client, model):
    return client.chat.completions.create(
        model=model, messages=SAY, stream=True, stream_options={"include_usage": True}
    )


def stream(client, model):
    try:
        with open_stream(client, model) as events:
            for event in events:
                tell_event(event)
    except openai.APIError as error:
        return tell_error(error)
    tell(ended=True)


def repeated_stream(client, model):
    """The same twice: what the head says of where it comes from, and then the events."""
    chats = client.chat.completions.with_raw_response
    for _ in range(2):
        answer = chats.create(model=model, messages=SAY, stream=True, stream_options={"include_usage": True})
        tell(cache_status=answer.headers["cache-status"], has_age="age" in answer.headers)
        for event in answer.parse():
            tell_event(event)
        tell(ended=True)


def impatient_stream(client, model):
    stream(client.with_options(timeout=0.3), model)


def broken_off_stream(client, model):
    events = open_stream(client, model)
    for _ in range(3):
        tell_event(next(events))
    events.close()
    tell(closed=True)


def embeddings(client, model):
    texts = ["one", "two", "one"]
    for options in [{}, {"encoding_format": "float"}, {"dimensions": 5}]:
        answer = client.embeddings.create(model=model, input=texts, **options)
        tell(
            model=answer.model,
            indices=[each.index for each in answer.data],
            vectors=[list(each.embedding) for each in answer.data],
            usage=answer.usage.model_dump(),
        )
    tell(vectors=[list(each.embedding) for each in client.embeddings.create(model=model, input="one").data])


def models(client, model):
    tell(ids=[each.id for each in client.models.list()])
    tell(id=client.models.retrieve(model).id)
    try:
        client.models.retrieve(model + "-not")
    except openai.APIError as error:
        tell_error(error)


def many_streams(_, model):
    asyncio.run(many(model))


async def many(model):
    async with openai.AsyncOpenAI(max_retries=0) as client:

        async def whole(number):
            said = {"role": "user", "content": f"number {number} of many"}
            events = await client.chat.completions.create(model=model, messages=[said], stream=True)
            return "".join([event.choices[0].delta.content or "" async for event in events])

        async def beginning():
            events = await open_stream(client, f"{model}-held")
            for _ in range(3):
                await anext(events)
            return events

        tell(contents=await asyncio.gather(*[whole(number) for number in range(MANY)]))
        held = await asyncio.gather(*[beginning() for _ in range(MANY)])
        tell(held=len(held))
        # The judge looks whether all of them are under way.
        sys.stdin.readline()
        await asyncio.gather(*[events.close() for events in held])
        tell(closed=len(held))


if __name__ == "__main__":
    _, scenario, model = sys.argv
    tell(version=openai.__version__)
    globals()[scenario](openai.OpenAI(max_retries=0), model)
