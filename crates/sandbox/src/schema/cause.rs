//! Why an object was refused, in the words of `metav1.Status` causes.
//!
//! kubectl and controllers match on these texts, so they are Kubernetes' own (`field.Error`), spelled once here.

use std::fmt;

use serde_json::Value;

/// Where in an object: `spec.containers[0].name`, `metadata.labels[a/b]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    pub fn root() -> Self {
        Self::default()
    }

    pub fn new(path: &str) -> Self {
        Self(path.to_owned())
    }

    #[must_use]
    pub fn field(&self, name: &str) -> Self {
        if self.0.is_empty() {
            Self(name.to_owned())
        } else {
            Self(format!("{}.{name}", self.0))
        }
    }

    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "<nil>" } else { &self.0 })
    }
}

/// The `reason` of a cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Required,
    Invalid,
    NotSupported,
    Duplicate,
    NotFound,
    Forbidden,
    TypeInvalid,
    TooLong,
    TooMany,
    ManagerConflict,
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Duplicate => "FieldValueDuplicate",
            Self::NotFound => "FieldValueNotFound",
            Self::Forbidden => "FieldValueForbidden",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::ManagerConflict => "FieldManagerConflict",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Duplicate => "Duplicate value",
            Self::NotFound => "Not found",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::ManagerConflict => "conflict",
        }
    }
}

/// One entry of `status.details.causes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    pub reason: Reason,
    /// Without the field: `Required value: must name a port`.
    pub message: String,
    pub field: String,
}

impl Cause {
    fn new(reason: Reason, at: &Path, message: String) -> Self {
        Self {
            reason,
            message,
            field: at.to_string(),
        }
    }

    pub fn required(at: &Path, detail: &str) -> Self {
        Self::new(
            Reason::Required,
            at,
            with_detail(Reason::Required.title().to_owned(), detail),
        )
    }

    pub fn invalid(at: &Path, value: &Value, detail: &str) -> Self {
        Self::new(
            Reason::Invalid,
            at,
            with_detail(format!("{}: {}", Reason::Invalid.title(), shown(value)), detail),
        )
    }

    /// Of objects and lists, which are too large to show.
    pub fn invalid_whole(at: &Path, detail: &str) -> Self {
        let title = Reason::Invalid.title().to_owned();
        Self::new(Reason::Invalid, at, with_detail(title, detail))
    }

    /// `shown` is what Go would print for the offending value.
    pub fn mistyped(at: &Path, shown: &str, detail: &str) -> Self {
        Self::new(
            Reason::TypeInvalid,
            at,
            with_detail(format!("{}: {shown}", Reason::TypeInvalid.title()), detail),
        )
    }

    pub fn unsupported(at: &Path, value: &Value, supported: &[&str]) -> Self {
        let quoted: Vec<String> = supported.iter().map(|value| format!("\"{value}\"")).collect();
        let message = format!(
            "{}: {}: supported values: {}",
            Reason::NotSupported.title(),
            shown(value),
            quoted.join(", ")
        );
        Self::new(Reason::NotSupported, at, message)
    }

    pub fn duplicate(at: &Path, value: &Value) -> Self {
        Self::new(
            Reason::Duplicate,
            at,
            format!("{}: {}", Reason::Duplicate.title(), shown(value)),
        )
    }

    /// Of objects and lists, which are too large to show.
    pub fn duplicate_whole(at: &Path) -> Self {
        Self::new(Reason::Duplicate, at, Reason::Duplicate.title().to_owned())
    }

    pub fn not_found(at: &Path, value: &Value) -> Self {
        Self::new(
            Reason::NotFound,
            at,
            format!("{}: {}", Reason::NotFound.title(), shown(value)),
        )
    }

    /// For values that Go prints in its own syntax: `map[string]string{"a":"b"}`.
    pub fn invalid_shown(at: &Path, shown: &str, detail: &str) -> Self {
        Self::new(
            Reason::Invalid,
            at,
            with_detail(format!("{}: {shown}", Reason::Invalid.title()), detail),
        )
    }

    pub fn forbidden(at: &Path, detail: &str) -> Self {
        Self::new(
            Reason::Forbidden,
            at,
            with_detail(Reason::Forbidden.title().to_owned(), detail),
        )
    }

    pub fn too_long(at: &Path, max: usize) -> Self {
        let message = format!("{}: may not be more than {max} bytes", Reason::TooLong.title());
        Self::new(Reason::TooLong, at, message)
    }

    pub fn too_many(at: &Path, actual: usize, max: usize) -> Self {
        let message = format!(
            "{}: {actual}: must have at most {max} items",
            Reason::TooMany.title()
        );
        Self::new(Reason::TooMany, at, message)
    }

    /// `message` names the other manager: `conflict with "kubectl" using apps/v1`.
    pub fn conflict(field: String, message: String) -> Self {
        Self {
            reason: Reason::ManagerConflict,
            message,
            field,
        }
    }
}

/// `field: message`, as it stands in the message of the whole status.
impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

fn with_detail(title: String, detail: &str) -> String {
    if detail.is_empty() {
        title
    } else {
        format!("{title}: {detail}")
    }
}

/// Strings are quoted; objects and lists appear as JSON.
fn shown(value: &Value) -> String {
    value.to_string()
}
