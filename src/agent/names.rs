use std::collections::BTreeMap;

/// What a hand-off to an agent, given as `name@version`, is called among the tools.
pub(super) fn handoff(to: &str) -> String {
    format!("handoff:{}", to.split_once('@').map_or(to, |(name, _)| name))
}

/// The tools by names that every provider takes (`[a-zA-Z0-9_-]{1,64}`): the same for the same tools.
pub(super) fn names<'a>(tools: impl IntoIterator<Item = &'a str>) -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    for tool in tools {
        let letter = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
        let plain: String = tool.chars().map(letter).take(60).collect();
        let mut name = plain.clone();
        let mut number = 1;
        while names.contains_key(&name) {
            number += 1;
            name = format!("{plain}_{number}");
        }
        names.insert(name, tool.to_owned());
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_tools_share_a_name() {
        let names = names(["http.request", "http_request", "mcp:git/hub", "mcp.git.hub", &"x".repeat(100)]);
        let pairs: Vec<_> = names.iter().map(|(name, tool)| (name.as_str(), tool.as_str())).collect();
        assert_eq!(pairs[..2], [("http_request", "http.request"), ("http_request_2", "http_request")]);
        assert_eq!(pairs[2..4], [("mcp_git_hub", "mcp:git/hub"), ("mcp_git_hub_2", "mcp.git.hub")]);
        assert!(names.keys().all(|name| name.len() <= 64));
    }
}
