//! From requests to keys, behaviour by behaviour.
