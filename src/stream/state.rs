use std::{sync::Arc, time::Duration};

use axum::extract::FromRef;

use super::{hub::Hub, pass::Passes, seats::Seats};
use crate::{
    config::{AuthSettings, StreamSettings},
    http::Front,
};

/// What the streams' operations need.
#[derive(Clone, Debug)]
pub struct Streams {
    pub(super) hub: Arc<Hub>,
    pub(super) front: Front,
    pub(super) seats: Arc<Seats>,
    pub(super) passes: Arc<Passes>,
    pub(super) keep_alive: Duration,
    pub(super) retry: Duration,
}

impl Streams {
    /// Over the streams of `hub`. The secret that signs tokens, where there is one, also protects the
    /// cookies of browsers.
    #[must_use]
    pub fn new(hub: Arc<Hub>, front: Front, settings: &StreamSettings, auth: &AuthSettings) -> Self {
        let secure = front.settings().base_url().starts_with("https://");
        Self {
            hub,
            front,
            seats: Seats::new(settings.per_tenant, settings.per_token),
            passes: Arc::new(Passes::new(auth, secure)),
            keep_alive: settings.keep_alive.0,
            retry: settings.retry.0,
        }
    }
}

impl FromRef<Streams> for Front {
    fn from_ref(streams: &Streams) -> Self {
        streams.front.clone()
    }
}
