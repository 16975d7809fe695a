-- 001: the first schema.
--
-- Rules: hot rows are small and hold no bodies; every index costs at every state change, so each
-- one names its reader; words of states are the small numbers of model.py. `*_at` is wall clock.
-- Where SQLite is older than 3.37 the store leaves the word STRICT out.

PRAGMA application_id = 1785684582; -- the letters "jobf"

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL -- JSON
) WITHOUT ROWID, STRICT;

CREATE TABLE workers (
    id            INTEGER PRIMARY KEY,
    worker_id     TEXT NOT NULL UNIQUE,
    transport     TEXT NOT NULL,
    host          TEXT NOT NULL,
    pid           INTEGER NOT NULL,
    slots         INTEGER NOT NULL,
    state         INTEGER NOT NULL,
    launch_id     TEXT,
    batch_job_id  TEXT,
    program_hash  TEXT NOT NULL,
    version       TEXT NOT NULL,
    registered_at REAL NOT NULL,
    ended_at      REAL,
    done          INTEGER NOT NULL,
    failed        INTEGER NOT NULL,
    reason        TEXT NOT NULL,
    floor         INTEGER NOT NULL DEFAULT 0 -- message counters below are pruned: duplicates
) STRICT;

CREATE TABLE launches (
    id           INTEGER PRIMARY KEY,
    launch_id    TEXT NOT NULL UNIQUE,
    system       TEXT NOT NULL,
    state        INTEGER NOT NULL,
    batch_job_id TEXT,
    planned_at   REAL NOT NULL,
    submitted_at REAL,
    ended_at     REAL,
    worker       INTEGER REFERENCES workers (id),
    reason       TEXT NOT NULL,
    script       TEXT,
    output       TEXT
) STRICT;

CREATE TABLE tasks (
    id             INTEGER PRIMARY KEY,
    task_id        TEXT NOT NULL UNIQUE,
    state          INTEGER NOT NULL DEFAULT 0,
    rank           INTEGER NOT NULL, -- the negated priority, so that the queue is one ascending index
    order_no       INTEGER NOT NULL,
    issued         INTEGER NOT NULL DEFAULT 0,
    current        INTEGER NOT NULL DEFAULT 0,
    failures       INTEGER NOT NULL DEFAULT 0,
    losses         INTEGER NOT NULL DEFAULT 0,
    deliveries     INTEGER NOT NULL DEFAULT 0,
    walltimes      INTEGER NOT NULL DEFAULT 0,
    max_retries    INTEGER NOT NULL,
    timeout_s      REAL,
    time_request_s REAL,
    memory_bytes   INTEGER,
    spec_bytes     INTEGER NOT NULL,
    -- No REFERENCES: it would be checked whenever a task ends, at a third of that update's cost; the
    -- attempt's row, which each end writes too, has one.
    worker         INTEGER,
    held           INTEGER NOT NULL DEFAULT 0,
    due            REAL, -- monotonic time of one daemon's life: cleared at every start
    solo           INTEGER NOT NULL DEFAULT 0,
    started_at     REAL,
    finished_at    REAL,
    error          TEXT
) STRICT;

-- Read by: the next page of the ready queue after a key.
CREATE INDEX tasks_ready ON tasks (rank, order_no) WHERE state = 0 AND held = 0 AND due IS NULL;
-- Read by: delayed tasks whose time has come.
CREATE INDEX tasks_due ON tasks (due) WHERE due IS NOT NULL;
-- Read by: listings by state (the row id is its last column), counts, and the start.
CREATE INDEX tasks_state ON tasks (state);
-- Read by: the start, and the count of the held. Empty, and so without cost, in normal running.
CREATE INDEX tasks_held ON tasks (state) WHERE held = 1;

CREATE TABLE task_specs (
    id        INTEGER PRIMARY KEY REFERENCES tasks (id),
    spec_hash BLOB NOT NULL,
    spec      BLOB NOT NULL
) STRICT;

CREATE TABLE task_results (
    id          INTEGER PRIMARY KEY REFERENCES tasks (id),
    attempt     INTEGER NOT NULL,
    body        BLOB,
    file_name   TEXT,
    file_size   INTEGER,
    file_sha256 TEXT
) STRICT;

CREATE TABLE attempts (
    task          INTEGER NOT NULL REFERENCES tasks (id),
    attempt       INTEGER NOT NULL,
    worker        INTEGER NOT NULL REFERENCES workers (id),
    started_at    REAL,
    ended_at      REAL,
    outcome       TEXT NOT NULL,
    cause         TEXT NOT NULL,
    charged       TEXT NOT NULL,
    exit_signal   TEXT,
    exit_code     INTEGER,
    duration_s    REAL,
    cpu_s         REAL,
    max_rss_bytes INTEGER,
    error         TEXT NOT NULL,
    traceback     TEXT NOT NULL,
    output_tail   TEXT NOT NULL,
    PRIMARY KEY (task, attempt)
) WITHOUT ROWID, STRICT;

CREATE TABLE processed_messages (
    worker  INTEGER NOT NULL REFERENCES workers (id),
    counter INTEGER NOT NULL,
    verdict TEXT NOT NULL,
    PRIMARY KEY (worker, counter)
) WITHOUT ROWID, STRICT;

CREATE TABLE events (
    id        INTEGER PRIMARY KEY,
    at        REAL NOT NULL,
    kind      TEXT NOT NULL,
    task_id   TEXT,
    worker_id TEXT,
    launch_id TEXT,
    text      TEXT NOT NULL,
    level     TEXT NOT NULL
) STRICT;
