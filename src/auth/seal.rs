use std::fmt;

use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use super::keys::weakness;
use crate::{
    config::VaultSettings,
    kernel::{Error, Problem, Result},
};

/// Bytes of a nonce: enough to be drawn at random for ever.
const NONCE: usize = 24;

/// Seals secrets for the time they lie in the database (XChaCha20-Poly1305). What is sealed can be opened only as what
/// it was sealed for: a row that is copied elsewhere stays shut.
#[derive(Clone)]
pub struct Vault {
    /// The first seals; all open.
    keys: Vec<(String, XChaCha20Poly1305)>,
}

/// A secret at rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Which of the vault's keys it takes.
    pub key_id: String,
    /// Nonce and ciphertext.
    pub bytes: Vec<u8>,
}

impl Vault {
    /// With the keys of the settings; without any it seals nothing.
    ///
    /// # Errors
    /// When a secret is too weak, with its setting.
    pub fn new(settings: &VaultSettings) -> Result<Self, String> {
        if settings.secret.is_none() && !settings.former.is_empty() {
            return Err("vault.secret: `vault.former` has secrets, but there is none to seal with now".to_owned());
        }
        let mut keys = Vec::new();
        for (setting, secret) in settings
            .secret
            .iter()
            .map(|secret| ("vault.secret", secret))
            .chain(settings.former.iter().map(|secret| ("vault.former", secret)))
        {
            let secret = secret.expose_secret();
            if let Some(why) = weakness(secret) {
                return Err(format!("{setting}: {why}; make one with `openssl rand -base64 48`"));
            }
            let digest = |purpose: &str| Sha256::digest(format!("fermata {purpose}\0{secret}"));
            let id = digest("vault id").iter().take(4).map(|byte| format!("{byte:02x}")).collect();
            keys.push((id, XChaCha20Poly1305::new(&digest("vault key"))));
        }
        Ok(Self { keys })
    }

    /// Seals `secret` for what `purpose` names: its tenant and its place.
    ///
    /// # Errors
    /// Conflict, where this server has no key to seal with.
    pub fn seal(&self, secret: &SecretString, purpose: &str, nonce: [u8; NONCE]) -> Result<Sealed> {
        let (id, key) = self.keys.first().ok_or_else(|| {
            let detail = "this server has nothing to seal secrets with: its operator has to set `vault.secret`";
            Error::new(Problem::Conflict, detail)
        })?;
        let payload = Payload { msg: secret.expose_secret().as_bytes(), aad: purpose.as_bytes() };
        let sealed = key.encrypt(&XNonce::from(nonce), payload).map_err(|e| Error::internal(e.to_string()))?;
        Ok(Sealed { key_id: id.clone(), bytes: [nonce.as_slice(), &sealed].concat() })
    }

    /// Opens what was sealed for `purpose`.
    ///
    /// # Errors
    /// When its key is not here any more, or it was sealed for something else.
    pub fn open(&self, sealed: &Sealed, purpose: &str) -> Result<SecretString> {
        let shut = |why: &str| Error::internal(format!("a secret sealed with the key {} {why}", sealed.key_id));
        let (_, key) = self
            .keys
            .iter()
            .find(|(id, _)| *id == sealed.key_id)
            .ok_or_else(|| shut("cannot be opened: neither `vault.secret` nor `vault.former` has that key"))?;
        let (nonce, bytes) = sealed.bytes.split_first_chunk::<NONCE>().ok_or_else(|| shut("is cut short"))?;
        let payload = Payload { msg: bytes, aad: purpose.as_bytes() };
        let opened = key.decrypt(&XNonce::from(*nonce), payload).map_err(|_| shut("is not the one of this place"))?;
        String::from_utf8(opened).map(SecretString::from).map_err(|_| shut("is no text"))
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|(id, _)| id)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "k7Qm1Zp0xV9sLr4TgYb2Nc8WdHf6JuEa";
    const THEN: &str = "J2aEu6fHdW8cN2bYgT4rLs9Vx0pZ1mQ7k";

    fn vault(secret: Option<&str>, former: &[&str]) -> Result<Vault, String> {
        let secrets = former.iter().map(|secret| SecretString::from(*secret)).collect();
        Vault::new(&VaultSettings { secret: secret.map(SecretString::from), former: secrets })
    }

    #[test]
    fn what_is_sealed_opens_in_its_place_and_nowhere_else() {
        let vault = vault(Some(NOW), &[]).unwrap();
        let sealed = vault.seal(&SecretString::from("sk-1"), "tnt_1 llm_key a", [7; NONCE]).unwrap();
        assert!(!String::from_utf8_lossy(&sealed.bytes).contains("sk-1"));
        assert_eq!(vault.open(&sealed, "tnt_1 llm_key a").unwrap().expose_secret(), "sk-1");
        assert!(vault.open(&sealed, "tnt_2 llm_key a").is_err());
        let mut forged = sealed.clone();
        *forged.bytes.last_mut().unwrap() ^= 1;
        assert!(vault.open(&forged, "tnt_1 llm_key a").is_err());
        forged.bytes.truncate(NONCE - 1);
        assert!(vault.open(&forged, "tnt_1 llm_key a").is_err());
    }

    #[test]
    fn a_key_that_is_replaced_still_opens_until_it_is_gone() {
        let sealed = vault(Some(THEN), &[]).unwrap().seal(&SecretString::from("sk-1"), "p", [7; NONCE]).unwrap();
        let rotated = vault(Some(NOW), &[THEN]).unwrap();
        assert_eq!(rotated.open(&sealed, "p").unwrap().expose_secret(), "sk-1");
        assert_ne!(rotated.seal(&SecretString::from("sk-1"), "p", [8; NONCE]).unwrap().key_id, sealed.key_id);
        assert!(vault(Some(NOW), &[]).unwrap().open(&sealed, "p").is_err());
    }

    #[test]
    fn without_a_key_nothing_is_sealed_and_a_weak_one_is_refused() {
        let refused = vault(None, &[]).unwrap().seal(&SecretString::from("sk-1"), "p", [7; NONCE]).unwrap_err();
        assert_eq!(refused.problem(), Problem::Conflict);
        assert!(vault(Some("short"), &[]).unwrap_err().contains("vault.secret"));
        assert!(vault(Some(NOW), &["short"]).unwrap_err().contains("vault.former"));
        assert!(vault(None, &[THEN]).is_err());
    }
}
