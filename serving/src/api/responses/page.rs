//! A list of items, returned in pages.

use serde_json::{Value, json};

use crate::api::error::{ApiError, shortened};

/// Items per page, unless the request gives a limit.
const DEFAULT: usize = 20;
/// The largest limit that a request may give.
const MOST: usize = 100;

/// The requested part of a list.
#[derive(Debug, PartialEq, Eq)]
pub struct Page {
    newest_first: bool,
    most: usize,
    /// The id of the item after which the page begins.
    after: Option<String>,
}

impl Page {
    /// Reads `order`, `limit` and `after` of a query. Other fields are ignored.
    ///
    /// # Errors
    /// The order is unknown, or the limit is out of range.
    pub fn of(query: &str) -> Result<Page, ApiError> {
        let mut page = Page { newest_first: true, most: DEFAULT, after: None };
        for (name, value) in query.split('&').filter_map(|field| field.split_once('=')) {
            match (name, value) {
                ("order", "asc") => page.newest_first = false,
                ("order", "desc") => page.newest_first = true,
                ("order", _) => return Err(ApiError::invalid("order", "`order` must be asc or desc.")),
                ("limit", limit) => match limit.parse::<usize>() {
                    Ok(most @ 1..=MOST) => page.most = most,
                    _ => return Err(ApiError::invalid("limit", format!("`limit` must be from 1 to {MOST}."))),
                },
                ("after", id) => page.after = Some(id.to_owned()),
                _ => {}
            }
        }
        Ok(page)
    }

    /// The requested page of a list whose oldest item is first.
    ///
    /// # Errors
    /// The list has no item with the id `after`.
    pub fn list(&self, oldest_first: &[Value]) -> Result<Value, ApiError> {
        let mut items: Vec<&Value> = oldest_first.iter().collect();
        if self.newest_first {
            items.reverse();
        }
        let begin = match &self.after {
            None => 0,
            Some(after) => {
                let place = items.iter().position(|item| item["id"] == *after);
                let missing = || ApiError::invalid("after", format!("There is no item `{}`.", shortened(after)));
                place.ok_or_else(missing)? + 1
            }
        };
        let left = &items[begin..];
        let shown = &left[..left.len().min(self.most)];
        let id = |item: Option<&&Value>| item.map_or(Value::Null, |item| item["id"].clone());
        Ok(json!({
            "object": "list",
            "data": shown,
            "first_id": id(shown.first()),
            "last_id": id(shown.last()),
            "has_more": shown.len() < left.len(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_consecutive() {
        let items: Vec<Value> = ["a", "b", "c"].map(|id| json!({ "id": id })).to_vec();
        let ids = |query: &str| {
            let list = Page::of(query).and_then(|page| page.list(&items)).map_err(|error| error.param)?;
            let ids: String =
                list["data"].as_array().into_iter().flatten().filter_map(|item| item["id"].as_str()).collect();
            Ok::<_, Option<String>>((ids, list["has_more"] == true))
        };
        assert_eq!(ids(""), Ok(("cba".into(), false)));
        assert_eq!(ids("order=asc&limit=2&include=x"), Ok(("ab".into(), true)));
        assert_eq!(ids("order=asc&limit=2&after=b"), Ok(("c".into(), false)));
        assert_eq!(ids("after=c&limit=1"), Ok(("b".into(), true)));
        assert_eq!(ids("after=a"), Ok((String::new(), false)));
        for (query, param) in [("order=up", "order"), ("limit=0", "limit"), ("limit=x", "limit"), ("after=d", "after")]
        {
            assert_eq!(ids(query), Err(Some(param.into())));
        }
    }
}
