"""One file's header, and the pass over the headers of all files of a source in bounded memory."""

import logging

# pydicom logs tracebacks and text from headers; what matters of them becomes a finding
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
