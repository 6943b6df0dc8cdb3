//! A value of a file, taken as it stands: whether it fits is said by the checks, with the field's path,
//! together with everything else that is wrong.

use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// A text.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// Anything else, described: always refused.
    Other(String),
}

impl Field {
    /// A text.
    pub fn text(text: impl fmt::Display) -> Self {
        Self::Text(text.to_string())
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "\"{text}\""),
            Self::Integer(number) => number.fmt(f),
            Self::Other(what) => what.fmt(f),
        }
    }
}

impl Serialize for Field {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => out.serialize_str(text),
            Self::Integer(number) => out.serialize_i64(*number),
            Self::Other(what) => out.collect_map([("refused", what)]),
        }
    }
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Taken)
    }
}

struct Taken;

impl<'de> Visitor<'de> for Taken {
    type Value = Field;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_str<E>(self, text: &str) -> Result<Field, E> {
        Ok(Field::Text(text.to_owned()))
    }
    fn visit_string<E>(self, text: String) -> Result<Field, E> {
        Ok(Field::Text(text))
    }
    fn visit_i64<E>(self, number: i64) -> Result<Field, E> {
        Ok(Field::Integer(number))
    }
    fn visit_u64<E>(self, number: u64) -> Result<Field, E> {
        let other = || Field::Other(number.to_string());
        Ok(i64::try_from(number).map_or_else(|_| other(), Field::Integer))
    }
    fn visit_f64<E>(self, number: f64) -> Result<Field, E> {
        Ok(Field::Other(format!("the fraction {number:?}")))
    }
    fn visit_bool<E>(self, value: bool) -> Result<Field, E> {
        Ok(Field::Other(value.to_string()))
    }
    fn visit_unit<E>(self) -> Result<Field, E> {
        Ok(Field::Other("null".to_owned()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Field, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Field::Other("a list".to_owned()))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Field, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Field::Other("a table".to_owned()))
    }
}

/// A value that is thrown away as it is read: where a secret may stand that must not be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Withheld;

impl<'de> Deserialize<'de> for Withheld {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(from).map(|_| Self)
    }
}
