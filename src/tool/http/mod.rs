//! `http.request`: one request to the outside world, which can neither be talked into reaching the
//! inside one nor leave anybody in doubt about whether it was sent.

mod exchange;
mod hosts;
mod request;
mod response;
#[cfg(test)]
mod tests;
mod tool;

pub(super) use tool::HttpRequest;
