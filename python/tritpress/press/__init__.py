"""From a source and its plan to stored codes: in constant memory, or calibrated block by block."""
