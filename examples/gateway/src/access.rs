//! Whose a request is: what its API key says, or else a header that is trusted.

use std::{collections::HashMap, fmt};

use bartizan_provider::{Class, Error};
use http::{HeaderMap, HeaderName, HeaderValue, Request, header::AUTHORIZATION};
use ring::digest::{SHA256, digest};
use secrecy::{ExposeSecret, SecretString};

use crate::config::Config;

/// The keys that are known, by their digests: how long it takes to look one up tells nothing of any other.
pub(crate) struct Access {
    tenants: HashMap<Digest, HeaderValue>,
    tenant_header: HeaderName,
    admin: Option<Digest>,
}

type Digest = [u8; 32];

impl Access {
    pub(crate) fn new(config: &Config) -> Self {
        let of = |secret: &SecretString| hash(secret.expose_secret().as_bytes());
        let tenant = |name: &str| HeaderValue::from_str(name).expect("the configuration checks its tenants");
        Self {
            tenants: config.keys.iter().map(|key| (of(&key.secret), tenant(&key.tenant))).collect(),
            tenant_header: config.server.tenant_header.clone(),
            admin: config.server.admin_token.as_ref().map(of),
        }
    }

    /// Lets a request with a known key pass, under the name of the key's tenant and no other. Without any keys
    /// everything passes as it is.
    pub(crate) fn admit<B>(&self, mut request: Request<B>) -> Result<Request<B>, Error> {
        if let Some(tenant) = self.tenant(request.headers())? {
            request.headers_mut().insert(self.tenant_header.clone(), tenant);
        }
        Ok(request)
    }

    /// The tenant by its key; `None` if there are no keys.
    pub(crate) fn tenant(&self, headers: &HeaderMap) -> Result<Option<HeaderValue>, Error> {
        if self.tenants.is_empty() {
            return Ok(None);
        }
        let key = bearer(headers).ok_or_else(|| {
            let message = "an API key of this gateway is needed, as `Authorization: Bearer` and the key";
            Error::new(Class::Auth, message)
        })?;
        match self.tenants.get(&hash(key)) {
            Some(tenant) => Ok(Some(tenant.clone())),
            None => Err(Error::new(Class::Auth, "this API key is not known here")),
        }
    }

    /// Whether there are admin endpoints.
    pub(crate) fn has_admin(&self) -> bool {
        self.admin.is_some()
    }

    pub(crate) fn admit_admin(&self, headers: &HeaderMap) -> Result<(), Error> {
        match (bearer(headers), self.admin) {
            (Some(token), Some(admin)) if hash(token) == admin => Ok(()),
            _ => Err(Error::new(
                Class::Auth,
                "the admin token is needed, as `Authorization: Bearer` and the token",
            )),
        }
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("keys", &self.tenants.len()).finish_non_exhaustive()
    }
}

fn hash(secret: &[u8]) -> Digest {
    digest(&SHA256, secret).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// What stands behind `Bearer`. Who sends two has to decide first.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (value, None) = (values.next()?.as_bytes(), values.next()) else { return None };
    let (scheme, token) = value.split_at_checked(b"bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}
