use jsonwebtoken::{Algorithm, EncodingKey};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::config::{AuthKey, KeyMaterial};

const SECRET: &str = "k7Qm1Zp0xV9sLr4TgYb2Nc8WdHf6JuEa";
const NOW: i64 = 1_795_251_600;

fn verifier() -> Verifier {
    Verifier::new(&AuthSettings { secret: Some(SECRET.into()), ..AuthSettings::default() }).expect("verifier")
}

fn now() -> Timestamp {
    DateTime::from_timestamp(NOW, 0).expect("time")
}

fn claims() -> Value {
    json!({"iss": "fermata", "aud": "fermata", "sub": "user_1", "tid": TenantId::new(now()), "roles": ["viewer"],
           "iat": NOW, "exp": NOW + 60, "jti": "tok-1"})
}

fn header() -> Value {
    json!({"alg": "HS256", "typ": "JWT", "kid": "main"})
}

fn base64url(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0_u32, |word, b| word << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for i in 0..=chunk.len() {
            text.push(char::from(ALPHABET[(word >> (18 - 6 * i)) as usize & 63]));
        }
    }
    text
}

/// A token with any header, its HMAC right whatever the header says.
fn token(header: &Value, claims: &Value) -> String {
    let message = format!("{}.{}", base64url(header.to_string().as_bytes()), base64url(claims.to_string().as_bytes()));
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).expect("signature");
    format!("{message}.{signature}")
}

fn verdict(token: &str) -> String {
    match verifier().verify(token, now()) {
        Ok(_) => "accepted".to_owned(),
        Err(error) => {
            assert_eq!(error.problem(), Problem::Unauthenticated);
            error.detail().to_owned()
        }
    }
}

fn with(member: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[member] = value;
    claims
}

#[test]
fn a_good_token_is_believed() {
    let claims = verifier().verify(&token(&header(), &claims()), now()).expect("claims");
    assert_eq!((claims.subject.as_str(), claims.token_id.as_str()), ("user_1", "tok-1"));
    assert_eq!(claims.roles, [Role::Viewer]);
    for aud in [json!(["other", "fermata"]), json!("fermata")] {
        assert_eq!(verdict(&token(&header(), &with("aud", aud))), "accepted");
    }
}

#[test]
fn groups_are_few_and_none_is_a_role() {
    let said = |groups: Value| verifier().verify(&token(&header(), &with("groups", groups)), now());
    assert_eq!(said(json!(["finance", "admin", "Haus 3"])).expect("claims").groups, ["finance", "Haus 3"]);
    for wrong in [json!(vec!["g"; 65]), json!([""]), json!(["x".repeat(129)]), json!("finance"), json!([1])] {
        assert!(said(wrong).is_err());
    }
}

#[test]
fn each_kind_of_key_verifies_its_own_tokens_and_no_others() {
    macro_rules! pair {
        ($name:literal) => {
            (
                include_bytes!(concat!("keys/", $name, ".pem")),
                include_str!(concat!("keys/", $name, ".pub.pem")).to_owned(),
            )
        };
    }
    let (rsa, rsa_public) = pair!("rs256");
    let (ec, ec_public) = pair!("es256");
    let (ed, ed_public) = pair!("eddsa");
    let keys = vec![
        AuthKey { kid: "r".to_owned(), material: KeyMaterial::RS256 { public_key: rsa_public } },
        AuthKey { kid: "e".to_owned(), material: KeyMaterial::ES256 { public_key: ec_public } },
        AuthKey { kid: "d".to_owned(), material: KeyMaterial::EdDSA { public_key: ed_public } },
    ];
    let verifier = Verifier::new(&AuthSettings { keys, ..AuthSettings::default() }).expect("verifier");
    let signers = [
        ("r", Algorithm::RS256, EncodingKey::from_rsa_pem(rsa).expect("key")),
        ("e", Algorithm::ES256, EncodingKey::from_ec_pem(ec).expect("key")),
        ("d", Algorithm::EdDSA, EncodingKey::from_ed_pem(ed).expect("key")),
    ];
    for (own, algorithm, key) in &signers {
        for kid in ["r", "e", "d"] {
            let header = jsonwebtoken::Header { kid: Some(kid.to_owned()), ..jsonwebtoken::Header::new(*algorithm) };
            let token = jsonwebtoken::encode(&header, &claims(), key).expect("token");
            assert_eq!(verifier.verify(&token, now()).is_ok(), kid == *own, "{algorithm:?} as {kid}");
        }
    }
}

#[test]
fn a_header_cannot_choose_algorithm_or_key() {
    for header in [
        json!({"alg": "none", "kid": "main"}),
        json!({"alg": "RS256", "kid": "main"}),
        json!({"alg": "HS384", "kid": "main"}),
        json!({"alg": "HS256"}),
        json!({"alg": "HS256", "kid": "../main"}),
        json!({"alg": "HS256", "kid": "main", "crit": ["exp"]}),
        json!({"alg": "HS256", "kid": "main", "typ": "dpop+jwt"}),
        json!({"alg": "HS256", "kid": 1}),
    ] {
        assert_ne!(verdict(&token(&header, &claims())), "accepted", "{header}");
    }
    let unsigned = token(&json!({"alg": "none", "kid": "main"}), &claims());
    let bare = unsigned.rsplit_once('.').expect("parts").0;
    assert_ne!(verdict(&format!("{bare}.")), "accepted");
}

#[test]
fn a_key_in_the_header_is_not_used() {
    let foreign = json!({"alg": "HS256", "kid": "main", "jku": "http://attacker.example/keys",
                         "x5u": "http://attacker.example/x5", "jwk": {"kty": "oct", "k": base64url(b"attacker")}});
    let message =
        format!("{}.{}", base64url(foreign.to_string().as_bytes()), base64url(claims().to_string().as_bytes()));
    let key = EncodingKey::from_secret(b"attacker");
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).expect("signature");
    assert_eq!(verdict(&format!("{message}.{signature}")), "the token's signature does not verify");
}

#[test]
fn a_public_key_is_no_hmac_secret() {
    let pem = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----";
    let key = crate::config::AuthKey {
        kid: "main".to_owned(),
        material: crate::config::KeyMaterial::EdDSA { public_key: pem.to_owned() },
    };
    let verifier = Verifier::new(&AuthSettings { keys: vec![key], ..AuthSettings::default() }).expect("verifier");
    let message =
        format!("{}.{}", base64url(header().to_string().as_bytes()), base64url(claims().to_string().as_bytes()));
    let forged =
        jsonwebtoken::crypto::sign(message.as_bytes(), &EncodingKey::from_secret(pem.as_bytes()), Algorithm::HS256);
    let error = verifier.verify(&format!("{message}.{}", forged.expect("signature")), now()).expect_err("refused");
    assert_eq!(error.detail(), "the token's `alg` is not the one its key is for");
}

#[test]
fn every_required_claim_is_required() {
    for claim in ["iss", "aud", "sub", "tid", "exp", "iat", "jti"] {
        let mut claims = claims();
        claims.as_object_mut().expect("object").remove(claim);
        let reason = verdict(&token(&header(), &claims));
        assert!(reason.contains(&format!("`{claim}`")), "{claim}: {reason}");
    }
}

#[test]
fn claims_of_others_are_refused() {
    for (claim, value) in [
        ("iss", json!("else")),
        ("aud", json!("else")),
        ("aud", json!([])),
        ("sub", json!("")),
        ("sub", json!("a\r\nb")),
        ("tid", json!("run_01h455vb4pex5vsknk084sn02q")),
        ("roles", json!(["root"])),
        ("jti", json!("")),
        ("exp", json!(1e300)),
        ("exp", json!("1795251600")),
    ] {
        assert_ne!(verdict(&token(&header(), &with(claim, value.clone()))), "accepted", "{claim} {value}");
    }
}

#[test]
fn leeway_is_thirty_seconds_both_ways() {
    for (claim, at, good) in [
        ("exp", NOW - 29, true),
        ("exp", NOW - 30, false),
        ("nbf", NOW + 30, true),
        ("nbf", NOW + 31, false),
        ("iat", NOW + 31, false),
    ] {
        assert_eq!(verdict(&token(&header(), &with(claim, json!(at)))) == "accepted", good, "{claim} {at}");
    }
}

#[test]
fn a_huge_token_is_not_looked_at() {
    let huge = token(&header(), &with("scope", json!("x".repeat(9000))));
    assert!(verdict(&huge).contains("longer than"));
}

#[test]
fn what_is_minted_verifies() {
    let settings = AuthSettings { secret: Some(SECRET.into()), ..AuthSettings::default() };
    let grant = crate::auth::Grant {
        tenant_id: TenantId::new(now()),
        subject: "user_2".parse().expect("subject"),
        roles: vec![Role::Service],
        groups: vec!["finance".to_owned()],
        scope: Some("runs:write".to_owned()),
        ttl: crate::kernel::Span::seconds(60),
    };
    let (token, minted) = crate::auth::Minter::new(&settings).expect("minter").mint(&grant, now()).expect("token");
    assert_eq!(verifier().verify(secrecy::ExposeSecret::expose_secret(&token), now()).expect("claims"), minted);
}

proptest! {
    #[test]
    fn noise_is_refused_without_a_panic(text in "[ -~]{0,200}|([A-Za-z0-9_-]{0,40}\\.){0,4}") {
        prop_assert!(verifier().verify(&text, now()).is_err());
    }

    #[test]
    fn one_changed_byte_breaks_the_signature(at in 0_usize..200, with in "[A-Za-z0-9_-]") {
        let good = token(&header(), &claims());
        let at = at % good.len();
        let mut bad = good.clone();
        bad.replace_range(at..=at, &with);
        // The last character of a part may hold bits that no byte needs; the library refuses those too.
        prop_assume!(bad != good);
        prop_assert!(verifier().verify(&bad, now()).is_err());
    }
}
