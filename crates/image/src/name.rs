use std::{fmt, str::FromStr};

use crate::Error;

/// The registry of names that name none.
const DEFAULT_DOMAIN: &str = "docker.io";
/// The tag of names that have none.
const DEFAULT_TAG: &str = "latest";

/// The full name of an image: registry, repository and tag.
///
/// Parsed by the grammar of Docker's references, short forms included: `hello`
/// is `docker.io/library/hello:latest`.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Name {
    domain: String,
    repository: String,
    tag: String,
}

impl Name {
    /// The tag, `latest` if none was given.
    pub fn tag(&self) -> &str {
        &self.tag
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.domain, self.repository, self.tag)
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let refuse = |reason| Error::Name {
            name: name.into(),
            reason,
        };
        if name.is_empty() {
            return Err(refuse("it is empty"));
        }
        if name.contains('@') {
            return Err(refuse("a digest is made with the image, not chosen"));
        }
        // The first component is a registry if it looks like a host.
        let (domain, rest) = match name.split_once('/') {
            Some((first, rest)) if first == "localhost" || first.contains(['.', ':']) => {
                (first, rest)
            }
            _ => (DEFAULT_DOMAIN, name),
        };
        let domain = match domain {
            "index.docker.io" => DEFAULT_DOMAIN,
            other => other,
        };
        let (repository, tag) = rest.split_once(':').unwrap_or((rest, DEFAULT_TAG));
        if !is_domain(domain) {
            return Err(refuse("the registry is not host or host:port"));
        }
        if !repository.split('/').all(is_component) {
            return Err(refuse(
                "a repository is made of a-z and 0-9, with single `.`, `_` or any `-` between, and `/`",
            ));
        }
        if !is_tag(tag) {
            return Err(refuse(
                "a tag is made of up to 128 letters, digits, `_`, `.` and `-`, and does not start with `.` or `-`",
            ));
        }
        let official = domain == DEFAULT_DOMAIN && !repository.contains('/');
        Ok(Self {
            domain: domain.into(),
            repository: if official {
                format!("library/{repository}")
            } else {
                repository.into()
            },
            tag: tag.into(),
        })
    }
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = domain.split_once(':').unwrap_or((domain, "0"));
    host.split('.').all(|label| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    }) && !port.is_empty()
        && port.bytes().all(|b| b.is_ascii_digit())
}

/// Whether runs of letters and digits are held together by `.`, `_`, `__` or
/// any number of `-`.
fn is_component(component: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let edges = bytes.first().zip(bytes.last());
    edges.is_some_and(|(first, last)| word(*first) && word(*last))
        && bytes.iter().all(|b| word(*b) || b"._-".contains(b))
        && bytes.split(|b| word(*b)).all(|join| {
            matches!(join, b"" | b"." | b"_" | b"__") || join.iter().all(|b| *b == b'-')
        })
}

fn is_tag(tag: &str) -> bool {
    (1..=128).contains(&tag.len())
        && !tag.starts_with(['.', '-'])
        && tag
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_completed_as_docker_does() {
        for (short, full) in [
            ("hello", "docker.io/library/hello:latest"),
            ("hello:1.0", "docker.io/library/hello:1.0"),
            ("me/hello", "docker.io/me/hello:latest"),
            ("docker.io/hello", "docker.io/library/hello:latest"),
            ("index.docker.io/hello:2", "docker.io/library/hello:2"),
            ("localhost/hello", "localhost/hello:latest"),
            ("localhost:5000/a/b:c", "localhost:5000/a/b:c"),
            (
                "registry.example.com/x--y/z__w:T_1",
                "registry.example.com/x--y/z__w:T_1",
            ),
        ] {
            let name: Name = short.parse().unwrap();
            assert_eq!(name.to_string(), full);
            assert_eq!(full.parse::<Name>().unwrap(), name);
        }
    }

    #[test]
    fn names_outside_the_grammar_are_refused() {
        let long = format!("hello:{}", "x".repeat(129));
        for name in [
            "",
            "Hello",
            "hello:",
            "hello:.x",
            "a//b",
            "/a",
            "a/",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "hello@sha256:00",
            "localhost:/a",
            "-.example.com/a",
            "hello world",
            "a:b/c",
            long.as_str(),
        ] {
            let error = name.parse::<Name>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{name}`")), "{error}");
        }
    }
}
