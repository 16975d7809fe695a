-- 004: assignments in lists.
--
-- A turn that hands out tasks writes one row here instead of one change in each task's row. An item
-- (task row, attempt, worker row) holds as long as its attempt is above the task's `issued`: any
-- later change of the task writes that column. See assignments.py.

CREATE TABLE assignments (
    id    INTEGER PRIMARY KEY,
    items BLOB NOT NULL -- msgpack: one flat list
) STRICT;
