"""What holds for all tests."""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # as a shell has it in what it runs in the background: the commands that tests start, and interrupt, would take it over
    signal.signal(signal.SIGINT, signal.default_int_handler)
