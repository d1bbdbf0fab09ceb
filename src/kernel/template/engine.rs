//! The one environment: strict, without files, clock or chance, and with only such filters as cannot
//! make much out of little.

use std::{borrow::Cow, sync::LazyLock};

use minijinja::{
    Environment, Error, ErrorKind, Output, State, UndefinedBehavior, Value, filters, functions,
    syntax::SyntaxConfig,
    tests,
    value::{Kwargs, Rest},
};

use super::value::{Budget, lower, write_text};

/// Instructions one rendering may take.
const FUEL: u64 = 100_000;
const RECURSION: usize = 64;

/// Where every template is compiled and run.
pub(super) static ENGINE: LazyLock<Environment<'static>> = LazyLock::new(build);

macro_rules! vocabulary {
    (filters { $($filter:literal => $f:expr,)* } tests { $($test:literal => $t:expr,)* }) => {
        /// The filters there are.
        pub(super) const FILTERS: &[&str] = &[$($filter,)*];
        /// The tests there are, in their spelling after `is`.
        pub(super) const TESTS: &[&str] = &[$($test,)*];

        fn add_vocabulary(engine: &mut Environment<'static>) {
            $(engine.add_filter($filter, $f);)*
            $(engine.add_test($test, $t);)*
        }
    };
}

/// The functions there are.
pub(super) const FUNCTIONS: &[&str] = &["range", "dict"];

vocabulary! {
    filters {
        "abs" => filters::abs,
        "attr" => filters::attr,
        "bool" => filters::bool,
        "capitalize" => filters::capitalize,
        "chain" => filters::chain,
        "count" => filters::length,
        "d" => filters::default,
        "default" => filters::default,
        "dictsort" => filters::dictsort,
        "first" => filters::first,
        "float" => filters::float,
        "groupby" => filters::groupby,
        "int" => filters::int,
        "items" => filters::items,
        "join" => join,
        "last" => filters::last,
        "length" => filters::length,
        "lines" => filters::lines,
        "list" => filters::list,
        "lower" => filters::lower,
        "map" => filters::map,
        "max" => filters::max,
        "min" => filters::min,
        "reject" => filters::reject,
        "rejectattr" => filters::rejectattr,
        "replace" => replace,
        "reverse" => filters::reverse,
        "round" => filters::round,
        "select" => filters::select,
        "selectattr" => filters::selectattr,
        "sort" => filters::sort,
        "split" => filters::split,
        "string" => string,
        "sum" => filters::sum,
        "title" => filters::title,
        "tojson" => to_json,
        "trim" => filters::trim,
        "unique" => filters::unique,
        "upper" => filters::upper,
        "urlencode" => filters::urlencode,
        "zip" => filters::zip,
    }
    tests {
        "boolean" => tests::is_boolean,
        "defined" => tests::is_defined,
        "divisibleby" => tests::is_divisibleby,
        "endingwith" => tests::is_endingwith,
        "eq" => tests::is_eq,
        "equalto" => tests::is_eq,
        "even" => tests::is_even,
        "false" => tests::is_false,
        "float" => tests::is_float,
        "ge" => tests::is_ge,
        "gt" => tests::is_gt,
        "in" => tests::is_in,
        "integer" => tests::is_integer,
        "iterable" => tests::is_iterable,
        "le" => tests::is_le,
        "lt" => tests::is_lt,
        "mapping" => tests::is_mapping,
        "ne" => tests::is_ne,
        "none" => tests::is_none,
        "number" => tests::is_number,
        "odd" => tests::is_odd,
        "sequence" => tests::is_sequence,
        "startingwith" => tests::is_startingwith,
        "string" => tests::is_string,
        "true" => tests::is_true,
        "undefined" => tests::is_undefined,
    }
}

fn build() -> Environment<'static> {
    let mut engine = Environment::empty();
    engine.set_undefined_behavior(UndefinedBehavior::Strict);
    engine.set_fuel(Some(FUEL));
    engine.set_recursion_limit(RECURSION);
    // A failure then says which name is undefined; nothing of the values is ever printed.
    engine.set_debug(true);
    engine.set_formatter(format_text);
    if let Ok(syntax) = SyntaxConfig::builder().keep_trailing_newline(true).build() {
        engine.set_syntax(syntax);
    }
    engine.add_function("range", functions::range);
    engine.add_function("dict", functions::dict);
    add_vocabulary(&mut engine);
    engine
}

fn format_text(out: &mut Output<'_>, _: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    let mut text = String::new();
    write_text(value, &mut Budget::full(), &mut text)?;
    out.write_str(&text).map_err(Error::from)
}

fn to_json(value: &Value) -> Result<String, Error> {
    lower(value, &mut Budget::full()).map(|json| json.to_string())
}

fn string(value: &Value) -> Result<String, Error> {
    let mut text = String::new();
    write_text(value, &mut Budget::full(), &mut text)?;
    Ok(text)
}

fn join(value: &Value, joiner: Option<Cow<'_, str>>, options: Kwargs) -> Result<String, Error> {
    let attribute = options.get::<Option<Cow<'_, str>>>("attribute")?;
    options.assert_all_used()?;
    let (mut text, mut budget) = (String::new(), Budget::full());
    for (index, item) in value.try_iter()?.checked().enumerate() {
        let item = item?;
        if let (true, Some(joiner)) = (index > 0, &joiner) {
            budget.spend(joiner.len())?;
            text.push_str(joiner);
        }
        let item = attribute.as_ref().map(|name| item.get_attr(name)).transpose()?.unwrap_or(item);
        write_text(&item, &mut budget, &mut text)?;
    }
    Ok(text)
}

fn replace(text: Cow<'_, str>, from: Cow<'_, str>, to: Cow<'_, str>, rest: Rest<Value>) -> Result<String, Error> {
    if from.is_empty() || !rest.is_empty() {
        return Err(Error::new(ErrorKind::InvalidOperation, "replace takes a text to find and a text to put there"));
    }
    let found = text.matches(&*from).count();
    Budget::full().spend(text.len().saturating_add(found.saturating_mul(to.len())))?;
    Ok(text.replace(&*from, &to))
}
