"""The program of the fault tests: its tasks note what they do, durably, before they return.

Program args: `n` tasks of `s` seconds each (less by up to the share `spread`, so that they do not
march in step), `log`, the file of notes, and `hurry`, a file whose presence makes all tasks end at
once; the list itself pauses after `pause_at` tasks until the file `gate` exists; `echo` comes back
in every result. A note is one line, written by one append and synced:
`start|end task attempt worker pid agent_pid time nonce`.
The result of an attempt carries the nonce of its end, so a result can be matched with its note.
"""

import os
import random
import time

from jobflow_worker import TaskDefinition, TaskProgram, current_attempt


class Oracle(TaskProgram):
    def generate_tasks(self):
        args = self.program_args
        for number in range(args["n"]):
            while number == args.get("pause_at") and not os.path.exists(args["gate"]):
                time.sleep(0.05)
            yield TaskDefinition(f"t{number:06}", {"i": number})

    def execute_task(self, spec, progress_cb):
        self.note("start", "-")
        args = self.program_args
        seconds = args.get("s", 0.0) * random.uniform(1 - args.get("spread", 0.0), 1)
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at and not os.path.exists(args.get("hurry", "")):
            time.sleep(min(0.2, max(0.0, ends_at - time.monotonic())))
        nonce = os.urandom(8).hex()
        self.note("end", nonce)
        return {"i": spec["i"], "nonce": nonce, "echo": args.get("echo")}

    def note(self, word, nonce):
        me = current_attempt()
        line = (
            f"{word} {me.task_id} {me.attempt} {me.worker_id} {os.getpid()} {os.getppid()}"
            f" {time.monotonic():.6f} {nonce}\n"
        )
        fd = os.open(self.program_args["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(fd, line.encode())
            os.fsync(fd)
        finally:
            os.close(fd)
