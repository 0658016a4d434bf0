//! The device thread: requests become slots, slots become step-level batches, plans become images. Knows no HTTP.
