//! How much of the campaign against faults the tests take on.

/// So much in the whole campaign, which `FERMATA_CAMPAIGN=full` asks for; so much every time.
pub fn scale<T>(full: T, usual: T) -> T {
    if std::env::var("FERMATA_CAMPAIGN").is_ok_and(|word| word == "full") { full } else { usual }
}
