use std::{any::Any, collections::BTreeMap, fmt};

use sqlx::{
    Arguments, Encode, Postgres, Type,
    error::BoxDynError,
    postgres::{PgArguments, PgHasArrayType},
};

use crate::kernel::{Error, Result};

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
    pub fn new<T: Row>(function: &'static str, rows: Vec<T>) -> Self {
        Self { function, rows: Box::new(rows) }
    }

    /// The riders of several appends as one of each function, in the order of the functions' names.
    ///
    /// # Errors
    /// When a function is given rows of two kinds.
    pub fn gather<'a>(riders: impl IntoIterator<Item = &'a Self>) -> Result<Vec<Self>> {
        let mut gathered: BTreeMap<&str, Self> = BTreeMap::new();
        for rider in riders {
            let function = rider.function;
            let of_one = gathered.entry(function).or_insert_with(|| Self { function, rows: rider.rows.none() });
            of_one.rows.take_in(&*rider.rows)?;
        }
        Ok(gathered.into_values().collect())
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

/// What a rider may have as its rows.
pub trait Row: for<'a> Encode<'a, Postgres> + Type<Postgres> + PgHasArrayType + Clone + Send + Sync + 'static {}

impl<T> Row for T where T: for<'a> Encode<'a, Postgres> + Type<Postgres> + PgHasArrayType + Clone + Send + Sync + 'static
{}

trait Rows: Any + Send + Sync {
    fn none(&self) -> Box<dyn Rows>;
    fn take_in(&mut self, more: &dyn Rows) -> Result<()>;
    fn bind(&self, arguments: &mut PgArguments) -> Result<(), BoxDynError>;
}

impl<T: Row> Rows for Vec<T> {
    fn none(&self) -> Box<dyn Rows> {
        Box::new(Self::new())
    }

    fn take_in(&mut self, more: &dyn Rows) -> Result<()> {
        let more = (more as &dyn Any).downcast_ref::<Self>();
        self.extend_from_slice(more.ok_or_else(|| Error::internal("a rider's rows are of another kind"))?);
        Ok(())
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(rider: &Rider) -> &[i64] {
        (&*rider.rows as &dyn Any).downcast_ref::<Vec<i64>>().unwrap()
    }

    #[test]
    fn each_function_is_called_once_with_all_its_rows() {
        let riders = [Rider::new("b", vec![1_i64]), Rider::new("a", vec![2_i64]), Rider::new("b", vec![3_i64, 4])];
        let gathered = Rider::gather(&riders).unwrap();
        let shown: Vec<_> = gathered.iter().map(|rider| (rider.function, kept(rider))).collect();
        assert_eq!(shown, [("a", &[2][..]), ("b", &[1, 3, 4])]);
        assert!(Rider::gather(&[Rider::new("a", vec![1_i64]), Rider::new("a", vec![true])]).is_err());
    }
}
