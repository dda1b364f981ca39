//! `wasi:keyvalue`: one store, in memory or in Redis, as is set.
//!
//! Reading order: [`Store`], `memory`, `redis`, and then this file's rest, which is the interface.

mod memory;
mod redis;

use std::sync::Arc;

use wasmtime::component::{HasData, Linker, Resource, ResourceTable, ResourceTableError};
use wasmtime_wasi::async_trait;

use crate::settings::KeyValue;
use crate::state::State;
use crate::trust;
use memory::Memory;
use redis::Redis;

/// A value, which is any bytes.
type Bytes = Vec<u8>;

/// What a store does. An error is a sentence for the guest.
#[async_trait]
pub(crate) trait Store: Send + Sync {
    /// The values of these keys, in their order; nothing for those that are not there.
    async fn get(&self, keys: &[String]) -> Result<Vec<Option<Bytes>>, String>;
    /// Sets keys to values, whatever they were.
    async fn set(&self, pairs: Vec<(String, Bytes)>) -> Result<(), String>;
    /// Removes these keys, those of them that are there.
    async fn delete(&self, keys: &[String]) -> Result<(), String>;
    /// Whether the key is there.
    async fn exists(&self, key: &str) -> Result<bool, String>;
    /// Some keys, from a cursor that an earlier call gave, or the beginning; and the cursor for more
    /// if there may be any.
    async fn keys(&self, cursor: Option<u64>) -> Result<(Vec<String>, Option<u64>), String>;
    /// Adds to a number that is written in decimal digits, at once, and gives the sum; one that is
    /// not there is 0.
    async fn increment(&self, key: &str, delta: u64) -> Result<u64, String>;
}

/// What gives an event loop its store, for a guest in the environment `env`. One in memory is the
/// same for all; connections belong to the loop that made them.
pub(crate) fn stores(set: &KeyValue, env: &[String]) -> impl Fn() -> Arc<dyn Store> + use<> {
    let memory = Arc::new(Memory::new(set.memory));
    let redis = set.redis.clone();
    let authorities = trust::named(env);
    move || match &redis.host {
        Some(host) => Arc::new(Redis::new(host.clone(), redis.clone(), authorities.clone())),
        None => memory.clone(),
    }
}

mod bindings {
    wasmtime::component::bindgen!({
        path: "wit/keyvalue.wit",
        world: "wasi:keyvalue/imports",
        imports: { default: async | trappable },
        with: { "wasi:keyvalue/store.bucket": super::Bucket },
        trappable_error_type: { "wasi:keyvalue/store.error" => super::Error },
    });
}

use bindings::wasi::keyvalue::{atomics, batch, store};

/// By which names a guest opens the store: the empty one, and the one that is usual elsewhere.
const NAMES: [&str; 2] = ["", "default"];

/// A guest's handle of the store.
pub struct Bucket(Arc<dyn Store>);

/// What goes wrong.
pub enum Error {
    /// There is no store of that name.
    NoSuchStore,
    /// The store says so.
    Store(String),
    /// A handle that is none: a trap.
    Handle(ResourceTableError),
}

impl From<String> for Error {
    fn from(reason: String) -> Self {
        Self::Store(reason)
    }
}

impl From<ResourceTableError> for Error {
    fn from(error: ResourceTableError) -> Self {
        Self::Handle(error)
    }
}

/// What the interface works on.
pub(crate) struct View<'a> {
    /// The store.
    pub(crate) store: &'a Arc<dyn Store>,
    /// The guest's handles.
    pub(crate) table: &'a mut ResourceTable,
}

struct HasView;

impl HasData for HasView {
    type Data<'a> = View<'a>;
}

/// Lets guests import the interface.
pub(crate) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    store::add_to_linker::<_, HasView>(linker, State::keyvalue)?;
    atomics::add_to_linker::<_, HasView>(linker, State::keyvalue)?;
    batch::add_to_linker::<_, HasView>(linker, State::keyvalue)
}

impl View<'_> {
    fn bucket(&self, handle: &Resource<Bucket>) -> Result<Arc<dyn Store>, ResourceTableError> {
        Ok(self.table.get(handle)?.0.clone())
    }
}

impl store::Host for View<'_> {
    async fn open(&mut self, identifier: String) -> Result<Resource<Bucket>, Error> {
        match NAMES.contains(&identifier.as_str()) {
            true => Ok(self.table.push(Bucket(self.store.clone()))?),
            false => Err(Error::NoSuchStore),
        }
    }

    fn convert_error(&mut self, error: Error) -> wasmtime::Result<store::Error> {
        match error {
            Error::NoSuchStore => Ok(store::Error::NoSuchStore),
            Error::Store(reason) => Ok(store::Error::Other(reason)),
            Error::Handle(error) => Err(error.into()),
        }
    }
}

impl store::HostBucket for View<'_> {
    async fn get(&mut self, bucket: Resource<Bucket>, key: String) -> Result<Option<Bytes>, Error> {
        let values = self.bucket(&bucket)?.get(&[key]).await?;
        Ok(values.into_iter().next().flatten())
    }

    async fn set(
        &mut self,
        bucket: Resource<Bucket>,
        key: String,
        value: Bytes,
    ) -> Result<(), Error> {
        Ok(self.bucket(&bucket)?.set(vec![(key, value)]).await?)
    }

    async fn delete(&mut self, bucket: Resource<Bucket>, key: String) -> Result<(), Error> {
        Ok(self.bucket(&bucket)?.delete(&[key]).await?)
    }

    async fn exists(&mut self, bucket: Resource<Bucket>, key: String) -> Result<bool, Error> {
        Ok(self.bucket(&bucket)?.exists(&key).await?)
    }

    async fn list_keys(
        &mut self,
        bucket: Resource<Bucket>,
        cursor: Option<u64>,
    ) -> Result<store::KeyResponse, Error> {
        let (keys, cursor) = self.bucket(&bucket)?.keys(cursor).await?;
        Ok(store::KeyResponse { keys, cursor })
    }

    async fn drop(&mut self, bucket: Resource<Bucket>) -> wasmtime::Result<()> {
        self.table.delete(bucket)?;
        Ok(())
    }
}

impl atomics::Host for View<'_> {
    async fn increment(
        &mut self,
        bucket: Resource<Bucket>,
        key: String,
        delta: u64,
    ) -> Result<u64, Error> {
        Ok(self.bucket(&bucket)?.increment(&key, delta).await?)
    }
}

impl batch::Host for View<'_> {
    async fn get_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Result<Vec<Option<(String, Bytes)>>, Error> {
        let values = self.bucket(&bucket)?.get(&keys).await?;
        let pairs = keys.into_iter().zip(values);
        Ok(pairs.map(|(key, value)| Some((key, value?))).collect())
    }

    async fn set_many(
        &mut self,
        bucket: Resource<Bucket>,
        pairs: Vec<(String, Bytes)>,
    ) -> Result<(), Error> {
        Ok(self.bucket(&bucket)?.set(pairs).await?)
    }

    async fn delete_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Result<(), Error> {
        Ok(self.bucket(&bucket)?.delete(&keys).await?)
    }
}
