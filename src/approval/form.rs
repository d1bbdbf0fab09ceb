use std::sync::Arc;

use serde_json::{Value, json};

use crate::{
    journal::Form,
    kernel::{Error, Result, compile},
};

/// The form with these answers; without any it is sent in empty.
///
/// # Errors
/// Invalid (422), with the path of what does not fit the form.
pub(super) fn filled(form: &Form, answers: Option<&Value>) -> Result<Arc<Value>> {
    let answers = answers.cloned().unwrap_or_else(|| json!({}));
    // A schema that cannot be read asks for nothing that could be checked.
    let mistake = compile(&form.schema).ok().and_then(|schema| {
        // Masked: it repeats nothing that was filled in.
        schema.iter_errors(&answers).next().map(|error| (error.instance_path().to_string(), error.masked().to_string()))
    });
    match mistake {
        None => Ok(Arc::new(answers)),
        Some((path, why)) => {
            Err(Error::invalid("arguments", format!("`arguments` do not fit the form: `{path}`: {why}"))
                .with("path", path))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_takes_what_its_schema_describes() {
        let schema = json!({ "type": "object", "required": ["age"], "properties": { "age": { "type": "integer" } } });
        let form = Form { message: "Old?".to_owned(), schema: Arc::new(schema), resume: None };
        assert_eq!(*filled(&form, Some(&json!({ "age": 3 }))).unwrap(), json!({ "age": 3 }));
        let refused = |answers: Option<Value>| filled(&form, answers.as_ref()).unwrap_err().detail().to_owned();
        assert!(refused(Some(json!({ "age": "three" }))).contains("`/age`"), "the path is named");
        assert!(!refused(Some(json!({ "age": "three" }))).contains("three"), "and the answer is not repeated");
        assert!(refused(None).contains("age"));
        let any = Form { schema: Arc::new(json!({ "type": "object", "properties": {} })), ..form };
        assert_eq!(*filled(&any, None).unwrap(), json!({}));
    }
}
