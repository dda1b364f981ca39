//! Messages of any kind.

use containerd_shim::protos::protobuf::Message;
use containerd_shim::protos::protobuf::well_known_types::any::Any;

/// A message of `package` as one of any kind. As everywhere in containerd, the type URL is the bare
/// name of the message (containerd/typeurl). The package is given, not asked for: the library would
/// parse the whole description of all messages of its file, which takes half a millisecond, and keep
/// that in memory.
pub fn any<M: Message>(package: &str, message: &M) -> Any {
    Any {
        type_url: format!("{package}.{}", M::NAME),
        // Only proto2's required fields can be missing.
        value: message
            .write_to_bytes()
            .expect("a proto3 message can always be written"),
        ..Any::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim::protos::events::task::TaskExit;
    use containerd_shim::protos::protobuf::MessageFull;

    #[test]
    fn the_name_is_the_messages_own() {
        let exit = TaskExit {
            pid: 7,
            ..TaskExit::default()
        };
        let packed = any("containerd.events", &exit);
        assert_eq!(packed.type_url, TaskExit::descriptor().full_name());
        assert_eq!(TaskExit::parse_from_bytes(&packed.value).unwrap(), exit);
    }
}
