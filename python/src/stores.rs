//! The stores that queries have opened.

use std::{
    collections::HashMap,
    path,
    sync::{LazyLock, Mutex, PoisonError},
};

use vlmdiff::{
    driver::open_store,
    engine::{Result, expand_home, is_url, local_path, store::Store},
};

/// Stores by address. They stay open until Python ends: opening one makes threads, and tables of a store may be in use by
/// another package.
static OPEN: LazyLock<Mutex<HashMap<String, Store>>> = LazyLock::new(Mutex::default);

/// Opens a store that exists, or returns it as it was opened before.
pub(crate) fn store(address: &str) -> Result<Store> {
    let mut place = expand_home(address);
    if !is_url(&place) {
        // Another working folder makes another store of a relative path.
        place = path::absolute(local_path(&place))?.to_string_lossy().into_owned();
    }
    let open = || OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = open().get(&place).filter(|_| is_url(&place) || local_path(&place).is_dir()).cloned();
    if let Some(known) = known {
        return Ok(known);
    }
    let opened = open_store(address, "by `store=`")?;
    open().insert(place, opened.clone());
    Ok(opened)
}
