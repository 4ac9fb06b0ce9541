"""What a fork server of loader workers runs first: signals to all processes do not end it.

With its server a worker ends too, in the middle of a step; the server itself ends with the last
process that it serves. Those that it forks take signals as usual.

To be imported by a fork server alone, as the first of its preloads.
"""

import os
import signal

_before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
os.register_at_fork(after_in_child=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, _before))
