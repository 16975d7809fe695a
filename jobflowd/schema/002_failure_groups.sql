-- 002: failures by cause.
--
-- A signature is the normalised cause of a failed attempt (signatures.py); its id is the number
-- of the group that people name in `retry --group`. It stays when the group is empty.

CREATE TABLE signatures (
    id   INTEGER PRIMARY KEY,
    text TEXT NOT NULL UNIQUE
) STRICT;

-- Where attempts failed so, and how many: rows are bounded by causes x hosts.
CREATE TABLE signature_hosts (
    signature INTEGER NOT NULL REFERENCES signatures (id),
    host      TEXT NOT NULL,
    count     INTEGER NOT NULL,
    PRIMARY KEY (signature, host)
) WITHOUT ROWID, STRICT;

-- Of the attempt that ended the task; meaningful while the task is failed.
ALTER TABLE tasks ADD COLUMN signature INTEGER REFERENCES signatures (id);

-- Read by: the groups with their counts and times (this index alone answers), and their tasks.
CREATE INDEX tasks_failed ON tasks (signature, finished_at) WHERE state = 4;
