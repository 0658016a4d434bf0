//! Backbones built of blocks: they say what is computed.
