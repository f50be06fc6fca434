"""From a scan to an answer."""
