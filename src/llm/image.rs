//! Images that a question names by address. The server fetches them itself, through the tenant's door and right before a
//! model is asked: not every provider does, and an adapter may leave out what it cannot pass on.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use chrono::TimeDelta;
use futures_util::future::try_join_all;
use reqwest::{
    Response, StatusCode, Url,
    header::{ACCEPT, CONTENT_TYPE, LOCATION},
};

use super::{AskError, Image, Message, Models, Prompt};
use crate::{
    db,
    http::{Door, Refusal},
    kernel::TenantId,
};

/// The longest that all images of a question may take.
const PATIENCE: TimeDelta = TimeDelta::seconds(30);
/// Redirects that are followed for one image.
const REDIRECTS: usize = 5;

impl Models {
    /// The question with the bytes of its images, wherever they are.
    pub(super) async fn see(&self, tenant: TenantId, mut prompt: Prompt) -> Result<Prompt, AskError> {
        let images = prompt.messages.iter_mut().flat_map(|message| match message {
            Message::User { images, .. } => images.as_mut_slice(),
            Message::Assistant { .. } | Message::Tool { .. } => &mut [],
        });
        let named: Vec<_> = images.filter(|image| image.data.is_none()).collect();
        if named.is_empty() {
            return Ok(prompt);
        }
        let door = db::patiently(|| self.outbound.door(tenant)).await?;
        let most = self.settings.image_bytes;
        let eye = Eye { door: &door, most, left: AtomicUsize::new(most) };
        let deadline = self.clock.now() + PATIENCE;
        tokio::select! {
            seen = try_join_all(named.into_iter().map(|image| eye.see(image))) => seen?,
            () = self.clock.sleep_until(deadline) => {
                let message = format!("the images were not there within {} s", PATIENCE.num_seconds());
                return Err(unreachable(message, true));
            }
        };
        Ok(prompt)
    }
}

/// Fetches the images of one question.
struct Eye<'a> {
    door: &'a Door,
    /// The most bytes that all of them may have, and how many are left.
    most: usize,
    left: AtomicUsize,
}

impl Eye<'_> {
    async fn see(&self, image: &mut Image) -> Result<(), AskError> {
        let url = image.url.as_deref().unwrap_or_default();
        let url = Url::parse(url).map_err(|_| AskError::new("url_refused", "an image's `url` is none".to_owned()))?;
        let response = self.get(url, &image.media_type).await?;
        let told = response.headers().get(CONTENT_TYPE).and_then(|told| told.to_str().ok()).unwrap_or_default();
        if !is_of(told, &image.media_type) {
            let (host, wanted) = (host(response.url()), &image.media_type);
            return Err(invalid(format!("`{host}` gives `{told}` where `{wanted}` is told of")));
        }
        let bytes = self.read(response).await?;
        image.data = Some(Arc::from(BASE64_STANDARD.encode(bytes)));
        Ok(())
    }

    /// The answer at that address, or where its redirects lead; each of them is vetted.
    async fn get(&self, mut url: Url, media_type: &str) -> Result<Response, AskError> {
        for _ in 0..=REDIRECTS {
            self.door.vet(&url).map_err(refused)?;
            let asking = self.door.client().get(url.clone()).header(ACCEPT, media_type);
            let response = asking.send().await.map_err(|error| match Refusal::behind(&error, host(&url)) {
                Some(refusal) => refused(refusal),
                None => unreachable(format!("`{}` cannot be reached, or hung up", host(&url)), true),
            })?;
            match (response.status(), response.headers().get(LOCATION)) {
                (StatusCode::OK, _) => return Ok(response),
                (status, Some(next)) if status.is_redirection() => {
                    let next = next.to_str().ok().and_then(|next| url.join(next).ok());
                    url = next.ok_or_else(|| unreachable(format!("`{}` redirects to no URL", host(&url)), false))?;
                }
                (status, _) => {
                    let passes = status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429);
                    return Err(unreachable(format!("`{}` answered {}", host(&url), status.as_u16()), passes));
                }
            }
        }
        Err(unreachable(format!("`{}` redirects once more than is followed", host(&url)), false))
    }

    async fn read(&self, mut response: Response) -> Result<Vec<u8>, AskError> {
        let too_large = || {
            let message = format!("the images take more than {} bytes together (`llm.image_bytes`)", self.most);
            AskError::new("image_too_large", message)
        };
        // A length past the room is not waited for; a wrong or missing one is counted below.
        let room = u64::try_from(self.left.load(Ordering::Relaxed)).unwrap_or(u64::MAX);
        if response.content_length().is_some_and(|length| length > room) {
            return Err(too_large());
        }
        let host = host(response.url()).to_owned();
        let broken = |_| unreachable(format!("`{host}` broke off in the middle of an image"), true);
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(broken)? {
            let take = |left: usize| left.checked_sub(chunk.len());
            self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).map_err(|_| too_large())?;
            bytes.extend_from_slice(&chunk);
        }
        if bytes.is_empty() { Err(invalid(format!("`{host}` gives an image without bytes"))) } else { Ok(bytes) }
    }
}

/// Not all of an address: it may be signed.
fn host(url: &Url) -> &str {
    url.host_str().unwrap_or_default()
}

fn unreachable(message: String, retryable: bool) -> AskError {
    AskError { retryable, ..AskError::new("image_unreachable", message) }
}

fn invalid(message: String) -> AskError {
    AskError::new("image_invalid", message)
}

fn refused(refusal: Refusal) -> AskError {
    let code = match refusal {
        Refusal::Url(_) => "url_refused",
        Refusal::Address(_) => "address_refused",
    };
    AskError::new(code, refusal.to_string())
}

/// Whether what a server says of a body is that type of image.
fn is_of(told: &str, wanted: &str) -> bool {
    let essence = |text: &str| {
        let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        // Many write it so.
        if essence == "image/jpg" { "image/jpeg".to_owned() } else { essence }
    };
    let told = essence(told);
    told.starts_with("image/") && told == essence(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_what_it_is_told_to_be() {
        for (told, wanted, fits) in [
            ("image/png", "image/png", true),
            ("Image/PNG; q=1", "image/png", true),
            ("image/jpg", "image/jpeg", true),
            ("image/jpeg", "image/jpg", true),
            ("image/webp", "image/png", false),
            ("text/html", "image/png", false),
            ("text/html", "text/html", false),
            ("", "image/png", false),
        ] {
            assert_eq!(is_of(told, wanted), fits, "{told} as {wanted}");
        }
    }
}
