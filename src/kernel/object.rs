use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, de::DeserializeOwned, de::Error as _};
use serde_json::{Map, Value};

/// For `#[serde(deserialize_with)]` of a field that is an object or null: derived readers would take an array for the
/// fields of a struct in their order.
///
/// # Errors
/// When it is neither, or its fields do not fit.
pub fn optional_object<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    let fields: Option<Map<String, Value>> = Option::deserialize(deserializer)?;
    fields.map(read).transpose().map_err(D::Error::custom)
}

/// The same for a field that is an object of objects.
///
/// # Errors
/// As [`optional_object`]; the message names the member.
pub fn optional_objects<'de, D, T>(deserializer: D) -> Result<Option<BTreeMap<String, T>>, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    let members: Option<BTreeMap<String, Map<String, Value>>> = Option::deserialize(deserializer)?;
    let read = |(name, fields)| match read(fields) {
        Ok(value) => Ok((name, value)),
        Err(reason) => Err(D::Error::custom(format!("{name}: {reason}"))),
    };
    members.map(|members| members.into_iter().map(read).collect()).transpose()
}

/// The same for a field that is a list of objects.
///
/// # Errors
/// As [`optional_object`]; the message names the place.
pub fn optional_object_list<'de, D, T>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    let items: Option<Vec<Map<String, Value>>> = Option::deserialize(deserializer)?;
    let read =
        |(place, fields): (usize, _)| read(fields).map_err(|reason| D::Error::custom(format!("[{place}]: {reason}")));
    items.map(|items| items.into_iter().enumerate().map(read).collect()).transpose()
}

/// The error says where.
fn read<T: DeserializeOwned>(fields: Map<String, Value>) -> Result<T, String> {
    serde_path_to_error::deserialize(Value::Object(fields)).map_err(|error| match error.path().to_string().as_str() {
        "." => error.inner().to_string(),
        path => format!("{path}: {}", error.inner()),
    })
}
