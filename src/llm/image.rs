//! Images that a question names by address.

use std::sync::Arc;

use base64::{Engine, prelude::BASE64_STANDARD};
use futures_util::future::try_join_all;

use super::{
    AskError, Image, Message, Models, Prompt,
    fetch::{Fetch, Kind, essence},
};
use crate::kernel::TenantId;

const IMAGE: Kind = Kind { name: "image", all: "the images", one: "an image", is_of };

impl Models {
    /// The question with the bytes of its images, wherever they are.
    pub(super) async fn see(&self, tenant: TenantId, mut prompt: Prompt) -> Result<Prompt, AskError> {
        let images = prompt.messages.iter_mut().flat_map(|message| match message {
            Message::User { images, .. } => images.as_mut_slice(),
            Message::Assistant { .. } | Message::Tool { .. } => &mut [],
        });
        let named: Vec<_> = images.filter(|image| image.data.is_none()).collect();
        if !named.is_empty() {
            let fetch = self.fetch(tenant, &IMAGE, self.settings.image_bytes).await?;
            fetch.in_time(try_join_all(named.into_iter().map(|image| see(image, &fetch)))).await?;
        }
        Ok(prompt)
    }
}

async fn see(image: &mut Image, fetch: &Fetch) -> Result<(), AskError> {
    let bytes = fetch.get(image.url.as_deref().unwrap_or_default(), &image.media_type).await?;
    image.data = Some(Arc::from(BASE64_STANDARD.encode(bytes)));
    Ok(())
}

fn is_of(told: &str, wanted: &str) -> bool {
    let kind = |text: &str| match essence(text) {
        // Many write it so.
        text if text == "image/jpg" => "image/jpeg".to_owned(),
        text => text,
    };
    let told = kind(told);
    told.starts_with("image/") && told == kind(wanted)
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
