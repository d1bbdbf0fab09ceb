use std::collections::HashMap;

use jsonwebtoken::{Algorithm, DecodingKey};
use secrecy::{ExposeSecret, SecretString};

use crate::config::{AuthKey, AuthSettings, KeyMaterial};

/// The kid of the key made from `auth.secret`.
pub(super) const MAIN: &str = "main";

const SHORTEST: usize = 32;

/// Secrets that people copy out of documentation.
const PLACEHOLDERS: [&str; 6] =
    ["changeme", "change-me", "change_me", "your-256-bit-secret", "supersecret", "placeholder"];

/// A key and the one algorithm it is good for.
pub(super) struct Key {
    pub(super) algorithm: Algorithm,
    pub(super) decoding: DecodingKey,
}

/// The keys by kid.
pub(super) fn ring(settings: &AuthSettings) -> Result<HashMap<String, Key>, String> {
    let mut ring = HashMap::new();
    if let Some(secret) = &settings.secret {
        ring.insert(MAIN.to_owned(), hmac("auth.secret", secret)?);
    }
    for key in &settings.keys {
        if key.kid.is_empty() || key.kid.len() > 128 {
            return Err("auth.keys: a kid is 1 to 128 characters long".to_owned());
        }
        if ring.insert(key.kid.clone(), read(key)?).is_some() {
            return Err(format!("auth.keys: two keys have the kid `{}`", key.kid));
        }
    }
    if ring.is_empty() {
        return Err("no key to verify tokens with: set FERMATA_AUTH_SECRET (`openssl rand -base64 48`) or `auth.keys`"
            .to_owned());
    }
    Ok(ring)
}

fn read(key: &AuthKey) -> Result<Key, String> {
    let setting = format!("auth.keys `{}`", key.kid);
    let public = |what: &str, algorithm, decoding: jsonwebtoken::errors::Result<DecodingKey>| match decoding {
        Ok(decoding) => Ok(Key { algorithm, decoding }),
        Err(_) => Err(format!("{setting}: `public_key` is no PEM of {what}")),
    };
    match &key.material {
        KeyMaterial::HS256 { secret } => hmac(&setting, secret),
        KeyMaterial::RS256 { public_key } => {
            // A 2048-bit key's PEM is 451 characters; 1024 bits make 272.
            if public_key.trim().len() < 400 {
                return Err(format!("{setting}: an RSA key needs at least 2048 bits"));
            }
            public("an RSA public key", Algorithm::RS256, DecodingKey::from_rsa_pem(public_key.as_bytes()))
        }
        KeyMaterial::ES256 { public_key } => {
            public("a P-256 public key", Algorithm::ES256, DecodingKey::from_ec_pem(public_key.as_bytes()))
        }
        KeyMaterial::EdDSA { public_key } => {
            public("an Ed25519 public key", Algorithm::EdDSA, DecodingKey::from_ed_pem(public_key.as_bytes()))
        }
    }
}

fn hmac(setting: &str, secret: &SecretString) -> Result<Key, String> {
    let secret = secret.expose_secret();
    match weakness(secret) {
        Some(why) => Err(format!("{setting}: {why}; make one with `openssl rand -base64 48`")),
        None => Ok(Key { algorithm: Algorithm::HS256, decoding: DecodingKey::from_secret(secret.as_bytes()) }),
    }
}

/// Why `secret` must not sign tokens, if so.
pub(super) fn weakness(secret: &str) -> Option<String> {
    if secret.len() < SHORTEST {
        return Some(format!("the secret has {} bytes, it needs {SHORTEST} (256 bits) at least", secret.len()));
    }
    let lower = secret.to_ascii_lowercase();
    if PLACEHOLDERS.iter().any(|known| lower.contains(known)) {
        return Some("the secret is a placeholder from an example".to_owned());
    }
    let bytes = secret.as_bytes();
    let distinct = bytes.iter().collect::<std::collections::HashSet<_>>().len();
    let periodic = (1..=bytes.len() / 2).any(|n| bytes.iter().zip(bytes.iter().skip(n)).all(|(a, b)| a == b));
    let counting = bytes.windows(2).filter(|w| matches!(w, [a, b] if b.wrapping_sub(*a) == 1)).count();
    (distinct < 8 || periodic || counting * 2 > bytes.len())
        .then(|| "the secret repeats or counts, so it can be guessed".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weak_secrets_are_refused_and_random_ones_taken() {
        for weak in [
            "short",
            "0123456789012345678901234567890",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "passwordpasswordpasswordpassword",
            "0123456789abcdefghijklmnopqrstuvwxyz",
            "changeme-changeme-changeme-changeme!",
            "please-change-me-in-production-0198",
        ] {
            assert!(weakness(weak).is_some(), "{weak}");
        }
        for strong in [
            "k7Qm1Zp0xV9sLr4TgYb2Nc8WdHf6JuEa",
            "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "correct horse battery staple, twice a day",
        ] {
            assert_eq!(weakness(strong), None, "{strong}");
        }
    }

    #[test]
    fn no_key_says_what_to_do() {
        let error = ring(&AuthSettings::default()).err().expect("refused");
        assert!(error.contains("FERMATA_AUTH_SECRET"), "{error}");
    }
}
