"""Methods that evict key/value entries after prefill and while answering, one file each."""
