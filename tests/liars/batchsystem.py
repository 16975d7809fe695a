"""A stand-in batch system that really runs jobs, and can be told to lie.

One file behind the names sbatch, squeue, scancel, sacct, bsub, bjobs and bkill. Its directory is
FAKEBATCH_DIR: `jobs/` (one directory each), `calls` (one line for each call). FAKEBATCH_LIES is a
comma-separated list of the lies below, each told with probability FAKEBATCH_RATE (0.3) by a
generator that FAKEBATCH_SEED and the number of the call start. Forms are those of LSF.md and of
SLURM 22.05. Only the standard library; run with `python3 -SE`.

A test can put files into a job's directory: `host_lost` (LSF has lost the host: UNKWN, and ZOMBI
once it was killed, while its processes go on) and `forgotten` (LSF knows it no more).
"""

import os
import random
import signal
import subprocess
import sys
import time

ROOT = os.environ.get("FAKEBATCH_DIR", "")
HEADERS = {
    "squeue": "JF|JOBID|STATE|REASON|TIME_LEFT|NAME|JF",
    "bjobs": "JOBID^STAT^EXIT_CODE^JOB_NAME^EXIT_REASON^PEND_REASON",
}
MOTD = "*** Scheduled maintenance on Monday | bring cake ***\n"


def count_call(verb):
    """Note the call; its number starts the dice."""
    path = os.path.join(ROOT, "calls")
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{verb} {time.time():.3f}\n".encode())
    number = os.lseek(fd, 0, os.SEEK_CUR)
    os.close(fd)
    seed = os.environ.get("FAKEBATCH_SEED", "0")
    return random.Random(f"{seed}-{number}-{verb}")


def lies(dice):
    """The lies of this call."""
    rate = float(os.environ.get("FAKEBATCH_RATE", "0.3"))
    wanted = [one for one in os.environ.get("FAKEBATCH_LIES", "").split(",") if one]
    return {one for one in wanted if dice.random() < rate}


# --- jobs -------------------------------------------------------------------------------------


def start_job(script, options, id_variable):
    """Run the script as a job; returns its id."""
    while True:
        number = 1000 + len(os.listdir(os.path.join(ROOT, "jobs")))
        place = os.path.join(ROOT, "jobs", str(number))
        try:
            os.mkdir(place)
            break
        except FileExistsError:
            continue
    write(place, "script", script)
    write(place, "name", options["name"])
    env = {k: v for k, v in os.environ.items() if not k.startswith("FAKEBATCH_")}
    env[id_variable] = str(number)
    if not os.environ.get("FAKEBATCH_HOLD"):
        # The status is written by a parent: the script's shell is replaced by the worker.
        runner = (
            'bash "$1/script" </dev/null; echo $? >"$1/status.new"; mv "$1/status.new" "$1/status"'
        )
        with open(options["output"], "ab") as output:
            running = subprocess.Popen(
                ["bash", "-c", runner, "job", place],
                cwd=options["cwd"],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        write(place, "pid", str(running.pid))
        running.returncode = 0
    return str(number)


def write(place, name, text):
    with open(os.path.join(place, name), "w") as file:
        file.write(text)


def read(place, name):
    try:
        with open(os.path.join(place, name)) as file:
            return file.read().strip()
    except OSError:
        return ""


def jobs():
    """(id, name, state, exit status): state is PENDING, RUNNING, DONE or KILLED."""
    found = []
    for number in sorted(os.listdir(os.path.join(ROOT, "jobs")), key=int):
        place = os.path.join(ROOT, "jobs", number)
        if os.path.exists(os.path.join(place, "forgotten")):
            continue
        status, pid, killed = read(place, "status"), read(place, "pid"), read(place, "killed")
        if status or (killed and not (pid and alive(int(pid)))):
            state = "KILLED" if killed else "DONE"
        elif not pid:
            state = "PENDING"
        else:
            state = "RUNNING" if alive(int(pid)) else "DONE"
        found.append((number, read(place, "name"), state, status or "0"))
    return found


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def kill_job(number):
    place = os.path.join(ROOT, "jobs", number)
    write(place, "killed", "yes")
    pid = read(place, "pid")
    if pid and alive(int(pid)) and not os.path.exists(os.path.join(place, "host_lost")):
        # As batch systems do: every process of the job, the worker's children among them.
        children = subprocess.run(
            ["pgrep", "-s", pid], stdout=subprocess.PIPE, text=True, check=False
        ).stdout.split()
        for one in children:
            if one != pid:
                try:
                    os.kill(int(one), signal.SIGTERM)
                except OSError:
                    pass


# --- the commands -----------------------------------------------------------------------------


def directives(script, mark):
    found = {}
    for line in script.splitlines():
        if line.startswith(mark):
            words = line[len(mark) :].strip()
            name, _, value = words.replace("=", " ", 1).partition(" ")
            found.setdefault(name, value.strip('"'))
    return found


def submit_slurm(argv):
    with open(argv[-1]) as file:
        script = file.read()
    given = directives(script, "#SBATCH")
    if given.get("--partition") == "nosuch":
        sys.stderr.write("sbatch: error: invalid partition specified: nosuch\n")
        sys.stderr.write(
            "sbatch: error: Batch job submission failed: Invalid partition name specified\n"
        )
        return 1, ""
    options = {"name": given["--job-name"], "output": given["--output"], "cwd": given["--chdir"]}
    return 0, start_job(script, options, "SLURM_JOB_ID") + "\n"


def submit_lsf(argv):
    script = sys.stdin.read()
    given = directives(script, "#BSUB")
    if given.get("-q") == "nosuch":
        sys.stderr.write("nosuch: No such queue. Job not submitted.\n")
        return 255, ""
    options = {"name": given["-J"], "output": given["-o"], "cwd": given["-cwd"]}
    number = start_job(script, options, "LSB_JOBID")
    return 0, f"Job <{number}> is submitted to queue <{given.get('-q', 'normal')}>.\n"


def query_slurm(argv):
    words = {"DONE": "COMPLETED", "KILLED": "CANCELLED"}
    lines = [HEADERS["squeue"]]
    for number, name, state, status in jobs():
        word = words.get(state, state)
        word = "FAILED" if state == "DONE" and status != "0" else word
        lines.append(f"JF|{number}|{word}|None|UNLIMITED|{name}|JF")
    return 0, "".join(f"{line}\n" for line in lines)


def query_lsf(argv):
    words = {"PENDING": "PEND", "RUNNING": "RUN", "KILLED": "EXIT"}
    rows = jobs()
    if not rows:
        sys.stderr.write("No job found\n")
        return 0, ""
    lines = [HEADERS["bjobs"]]
    for number, name, state, status in rows:
        word = words.get(state, "DONE" if status == "0" else "EXIT")
        code = "-" if status == "0" else status
        why = "TERM_OWNER: job killed by owner" if state == "KILLED" else "-"
        place = os.path.join(ROOT, "jobs", number)
        if os.path.exists(os.path.join(place, "host_lost")):
            word = "ZOMBI" if read(place, "killed") else "UNKWN"
            code = why = "-"
        lines.append(f"{number}^{word}^{code}^{name}^{why}^-")
    return 0, "".join(f"{line}\n" for line in lines)


def cancel(argv):
    named = [one.partition("=")[2] for one in argv if one.startswith("--name=")]
    if "-J" in argv:
        named = [argv[argv.index("-J") + 1]]
    ids = [one for one in argv if one.isdigit() and one != "0"]
    rc, out, known = 0, "", set()
    for number, name, state, _ in jobs():
        known.add(number)
        if number in ids or name in named:
            if state in ("PENDING", "RUNNING"):
                kill_job(number)
                if VERB == "bkill":
                    out += f"Job <{number}> is being terminated\n"
            elif VERB == "bkill":
                sys.stderr.write(f"Job <{number}>: Job has already finished\n")
                rc = 255
    if VERB == "bkill":
        for number in ids:
            if number not in known:
                sys.stderr.write(f"Job <{number}>: No matching job found\n")
                rc = 255
    return rc, out


def no_accounting(argv):
    sys.stderr.write("Slurm accounting storage is disabled\n")
    return 1, ""


def spoil(told, dice, rc, out):
    """What bjobs is seen to do: hosts lost for a moment, a job left out, half an answer, 255."""
    lines = out.splitlines(keepends=True)
    if "unkwn" in told:
        lines = [line.replace("^RUN^", "^UNKWN^") for line in lines]
    if "missing" in told and len(lines) > 1:
        del lines[dice.randrange(1, len(lines))]
    if "notfound" in told:
        sys.stderr.write("Job <1> is not found\n")
        rc = 255
    if "partial" in told:
        lines = lines[: 1 + len(lines) // 2]
        sys.stderr.write("Failed in an LSF library call: Connection timed out\n")
        rc = 255
    return rc, "".join(lines)


VERBS = {
    "sbatch": submit_slurm,
    "squeue": query_slurm,
    "scancel": cancel,
    "sacct": no_accounting,
    "bsub": submit_lsf,
    "bjobs": query_lsf,
    "bkill": cancel,
}
VERB = os.path.basename(sys.argv[0])


def main():
    dice = count_call(VERB)
    told = lies(dice)
    if "slow" in told:
        time.sleep(0.5)
    if "error" in told:
        sys.stderr.write(f"{VERB}: error: Socket timed out on send/recv operation\n")
        return 1
    if "hang" in told:
        time.sleep(600)
    crash = os.environ.get("FAKEBATCH_CRASH", "")
    if VERB in ("sbatch", "bsub") and crash == "before":
        os.kill(os.getppid(), signal.SIGKILL)
        return 1
    rc, out = VERBS[VERB](sys.argv[1:])
    if VERB in ("sbatch", "bsub") and crash == "after":
        os.kill(os.getppid(), signal.SIGKILL)
    if "after" in told:
        time.sleep(600)
    if VERB == "bjobs":
        rc, out = spoil(told, dice, rc, out)
    if "empty" in told:
        out = ""
    if "truncated" in told:
        out = out[: len(out) * 2 // 3]
    if "motd" in told:
        out = MOTD + out
    if "twice" in told and VERB in ("squeue", "bjobs"):
        lines = out.splitlines(keepends=True)
        out = "".join(lines + lines[1:])
    sys.stdout.write(out)
    return rc


if __name__ == "__main__":
    sys.exit(main())
