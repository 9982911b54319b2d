//! One file a kernel.

mod codes;
pub(crate) mod embed;
pub(crate) mod experts;
pub(crate) mod norm;
pub(crate) mod project;
mod reduce;
pub(crate) mod router;
#[cfg(test)]
mod testing;
