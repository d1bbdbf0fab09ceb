use std::fmt;

use sqlx::{
    Arguments, Encode, Postgres, Type,
    error::BoxDynError,
    postgres::{PgArguments, PgHasArrayType},
};

/// Rows that become true with an append, in the same statement: a function of the database that is given the runs
/// that moved and these rows, and hands the runs on.
pub struct Rider {
    /// The function.
    pub function: &'static str,
    rows: Box<dyn Rows>,
}

impl Rider {
    /// Has `function` write `rows`.
    #[must_use]
    pub fn new<T>(function: &'static str, rows: Vec<T>) -> Self
    where
        T: for<'a> Encode<'a, Postgres> + Type<Postgres> + PgHasArrayType + Send + Sync + 'static,
    {
        Self { function, rows: Box::new(rows) }
    }

    /// Adds the rows to a statement's arguments.
    ///
    /// # Errors
    /// When they cannot be encoded.
    pub fn bind(&self, arguments: &mut PgArguments) -> Result<(), BoxDynError> {
        self.rows.bind(arguments)
    }
}

impl fmt::Debug for Rider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rider").field("function", &self.function).finish_non_exhaustive()
    }
}

trait Rows: Send + Sync {
    fn bind(&self, arguments: &mut PgArguments) -> Result<(), BoxDynError>;
}

impl<T> Rows for Vec<T>
where
    T: for<'a> Encode<'a, Postgres> + Type<Postgres> + PgHasArrayType + Send + Sync,
{
    fn bind(&self, arguments: &mut PgArguments) -> Result<(), BoxDynError> {
        arguments.add(self)
    }
}

/// Encodes a struct as a composite type of the database; fields in the type's order.
macro_rules! composite {
    ($($row:ty = $name:literal ($($field:ident),+ $(,)?);)*) => {$(
        impl ::sqlx::Type<::sqlx::Postgres> for $row {
            fn type_info() -> ::sqlx::postgres::PgTypeInfo {
                ::sqlx::postgres::PgTypeInfo::with_name($name)
            }
        }

        impl ::sqlx::postgres::PgHasArrayType for $row {
            fn array_type_info() -> ::sqlx::postgres::PgTypeInfo {
                ::sqlx::postgres::PgTypeInfo::array_of($name)
            }
        }

        impl ::sqlx::Encode<'_, ::sqlx::Postgres> for $row {
            fn encode_by_ref(
                &self,
                buffer: &mut ::sqlx::postgres::PgArgumentBuffer,
            ) -> ::std::result::Result<::sqlx::encode::IsNull, ::sqlx::error::BoxDynError> {
                let mut record = ::sqlx::postgres::types::PgRecordEncoder::new(buffer);
                $(record.encode(&self.$field)?;)+
                record.finish();
                Ok(::sqlx::encode::IsNull::No)
            }
        }
    )*};
}
pub(crate) use composite;
