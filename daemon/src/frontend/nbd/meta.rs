//! Meta contexts: the questions BLOCK_STATUS can answer. A context of this server's own (`tidemark:changed-since:MARK`) joins
//! [`MetaContext`], [`MetaContext::matching`] and the answer in `conn`; nothing else knows which contexts exist.

/// A context a client may choose. Its id on the wire is its place among the chosen ones, from 1.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MetaContext {
    /// `base:allocation`: which parts are holes.
    Allocation,
}

/// The contexts chosen for an export, in the order of their ids.
pub type Contexts = Vec<MetaContext>;

const ALL: [MetaContext; 1] = [MetaContext::Allocation];

impl MetaContext {
    /// Its full name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Allocation => "base:allocation",
        }
    }

    fn namespace(&self) -> &'static str {
        match self {
            Self::Allocation => "base:",
        }
    }

    /// The contexts that `query` names. A bare namespace matches all of it when listing, and chooses nothing.
    fn matching(query: &str, listing: bool) -> Vec<MetaContext> {
        let fits = |context: &&MetaContext| query == context.name() || (listing && query == context.namespace());
        ALL.iter().filter(fits).cloned().collect()
    }

    /// The contexts to list for these queries; all of them when there is none.
    pub fn listed(queries: &[&str]) -> Contexts {
        if queries.is_empty() { ALL.to_vec() } else { Self::collect(queries, true) }
    }

    /// The contexts that these queries choose, each once.
    pub fn chosen(queries: &[&str]) -> Contexts {
        Self::collect(queries, false)
    }

    fn collect(queries: &[&str], listing: bool) -> Contexts {
        let mut found = Contexts::new();
        for context in queries.iter().flat_map(|query| Self::matching(query, listing)) {
            if !found.contains(&context) {
                found.push(context);
            }
        }
        found
    }
}

/// The id on the wire of the context at this place.
pub fn context_id(place: usize) -> u32 {
    u32::try_from(place).map_or(u32::MAX, |place| place + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_lists_and_does_not_choose() {
        assert_eq!(MetaContext::listed(&["base:"]), [MetaContext::Allocation]);
        assert_eq!(MetaContext::listed(&[]), [MetaContext::Allocation]);
        assert_eq!(MetaContext::chosen(&["base:"]), []);
        assert_eq!(MetaContext::chosen(&["qemu:dirty-bitmap:x", "base:allocation"]), [MetaContext::Allocation]);
    }

    #[test]
    fn a_context_is_chosen_once() {
        assert_eq!(MetaContext::chosen(&["base:allocation", "base:allocation"]).len(), 1);
    }
}
