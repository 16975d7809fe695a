"""Every number that bounds something, with its reason.

Rule: a limit that two processes must agree on lives here and nowhere else. Sizes are bytes,
times are seconds. This module imports nothing.
"""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

#: Range of protocol versions this code speaks; a peer without overlap is rejected by name.
PROTOCOL_MIN: Final = 1
PROTOCOL_MAX: Final = 1

#: One frame on the wire. libzmq drops a larger one silently, so senders split before this.
FRAME_BYTES_MAX: Final = 4 * MIB
#: Where a sender starts a new frame: one message more (at most one body) must still fit.
FRAME_BYTES_SPLIT: Final = 1 * MIB
#: Envelopes in one frame; a sender splits, a receiver refuses.
ENVELOPES_PER_FRAME_MAX: Final = 256
#: Lists and maps in one frame: a full frame of real messages has fewer, and a frame of nothing
#: else would take seventy times its size in memory.
CONTAINERS_PER_FRAME_MAX: Final = 200_000
#: A mailbox file. A worker with a fuller outbox starts no new task.
MAILBOX_BYTES_MAX: Final = 4 * MIB

#: Items of one list in a message: bounds the work that one message can cause.
ITEMS_PER_MESSAGE_MAX: Final = 1000
#: Attempts that one worker may hold, running and waiting together.
ATTEMPTS_PER_WORKER_MAX: Final = 4000
#: Slots of one worker: more than any node has cores for.
SLOTS_MAX: Final = 1024

#: Task ids are keys in indexes and words in tables; 255 is what file systems call a long name.
TASK_ID_CHARS_MAX: Final = 255
#: One encoded spec. A spec is parameters, not data: data belongs in files.
SPEC_BYTES_MAX: Final = 512 * KIB
#: A result up to this size travels in the message, a larger one as a file in the session.
RESULT_INLINE_BYTES_MAX: Final = 64 * KIB
#: A result file above this fails its task: it is output and belongs in the task's own file.
RESULT_BYTES_MAX: Final = 256 * MIB
#: msgpack nesting; the decoder would raise StackError near 1,000.
NESTING_MAX: Final = 64

#: One line that says what went wrong.
ERROR_CHARS_MAX: Final = 2 * KIB
#: A traceback: both ends of a deep one are kept.
TRACEBACK_CHARS_MAX: Final = 16 * KIB
#: The end of a task's stdout and stderr that travels with its outcome.
OUTPUT_TAIL_BYTES_MAX: Final = 8 * KIB
#: A running attempt's output file on the node; above this its older half is thrown away.
OUTPUT_FILE_BYTES_MAX: Final = 64 * MIB
#: Any short text of a peer (host names, versions, labels, reasons).
WORD_CHARS_MAX: Final = 255
#: Encoded progress info of one task; larger ones are dropped, the fraction stays.
PROGRESS_INFO_BYTES_MAX: Final = 2 * KIB

#: Attempts fed ahead to one slot: what hides two round trips behind no-op tasks.
PREFETCH_PER_SLOT_MAX: Final = 1000
#: An attempt that waited longer than this (or three round trips) behind a running one is
#: handed back, so that a long task never has another stuck behind it.
WAIT_BEHIND_S_MIN: Final = 1.0
#: The latest progress of a task travels at most this often.
PROGRESS_INTERVAL_S: Final = 1.0

#: Between SIGTERM and SIGKILL of a task's process group.
KILL_GRACE_S: Final = 5.0
#: Registering is repeated with this pause at first, doubling to the maximum.
REGISTER_RETRY_S: Final = 1.0
REGISTER_RETRY_S_MAX: Final = 15.0
#: The options of the TCP sockets. SNDHWM: what waits for a peer that reads slowly; then a send
#: says EAGAIN, and the next report repeats what matters.
SOCKET_SEND_FRAMES_MAX: Final = 1_000
#: RCVHWM of a worker: its one peer is the manager, which it trusts.
SOCKET_RECEIVE_FRAMES_MAX: Final = 10_000
#: RCVHWM of the manager, for each peer. A worker sends a few frames a second; what is above stays
#: in the kernel's buffers, so a peer's memory here is bounded by this times the largest frame.
SOCKET_FRAMES_PER_PEER_MAX: Final = 100
#: HANDSHAKE_IVL: a connection that says nothing, or stops half-way, is closed after this. libzmq's
#: own 30 s would let a stranger hold six times as many descriptors.
SOCKET_HANDSHAKE_S: Final = 5
#: HEARTBEAT_IVL and _TIMEOUT, _TTL: a dead host is noticed below, so that nothing is queued for
#: it. Leases are another matter and another clock.
SOCKET_PING_S: Final = 10
SOCKET_DEAD_S: Final = 30
#: TCP_KEEPALIVE_*: firewalls between login and compute nodes forget connections that are silent.
TCP_KEEPALIVE_IDLE_S: Final = 60
TCP_KEEPALIVE_INTERVAL_S: Final = 20
TCP_KEEPALIVE_COUNT: Final = 3
#: RECONNECT_IVL, plus a random part of the second value, up to _MAX: a thousand workers must not
#: come back in the same instant.
SOCKET_RECONNECT_S: Final = 1
SOCKET_RECONNECT_JITTER_S: Final = 0.5
SOCKET_RECONNECT_S_MAX: Final = 30
#: BACKLOG: a thousand jobs may start in the same second.
SOCKET_BACKLOG: Final = 4_096
#: In `auto`, how long the TCP endpoints may take before the mailbox is used.
CONNECT_PATIENCE_S: Final = 5.0
