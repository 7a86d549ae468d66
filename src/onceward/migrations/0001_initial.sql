-- The three rows and their bookkeeping. {schema} is the only substitution. States are text with a CHECK; no triggers.

-- The inbox: "this consumer has taken this message". Partitioned by the id itself (a UUIDv7 holds its time), so that a
-- duplicate always lands where its original is, uniqueness is real, and retention is dropping a partition.
-- There is no default partition on purpose: it would take an old id as new after its partition was dropped.
CREATE TABLE {schema}.inbox (
    consumer     text        NOT NULL,
    message_id   uuid        NOT NULL,
    fingerprint  bytea       NOT NULL,
    state        text        NOT NULL CONSTRAINT inbox_state CHECK (state IN ('pending', 'done', 'parked')),
    token        bigint      NOT NULL DEFAULT 1,  -- fencing token: one more with every take-over
    forgiven     bigint      NOT NULL DEFAULT 0,  -- takes that do not count as crashes (failed, deferred, redriven)
    lease_until  timestamptz,                     -- of a pending row; NULL: anybody may take it over
    worker       text,
    taken_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (consumer, message_id)
) PARTITION BY RANGE (message_id);

-- What is not finished: upkeep looks here before it retires a partition, people look here when they are paged.
CREATE INDEX inbox_open ON {schema}.inbox (message_id) WHERE state <> 'done';

-- The same for ids that carry no time (opt-in: after pruning, they would be taken as new).
CREATE TABLE {schema}.inbox_untimed (
    consumer     text        NOT NULL,
    message_id   text        NOT NULL,
    fingerprint  bytea       NOT NULL,
    state        text        NOT NULL CONSTRAINT inbox_untimed_state CHECK (state IN ('pending', 'done', 'parked')),
    token        bigint      NOT NULL DEFAULT 1,
    forgiven     bigint      NOT NULL DEFAULT 0,
    lease_until  timestamptz,
    worker       text,
    taken_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (consumer, message_id)
);

-- Intents: "this consumer is about to touch the outside", committed before the call. They live as long as their inbox row.
CREATE TABLE {schema}.intents (
    consumer            text        NOT NULL,
    message_id          uuid        NOT NULL,
    n                   integer     NOT NULL,     -- the n-th effect of the handler, from 1
    name                text        NOT NULL,
    request_fingerprint bytea       NOT NULL,
    key                 text        NOT NULL,     -- the idempotency key sent to the provider
    state               text        NOT NULL DEFAULT 'pending'
                        CONSTRAINT intents_state CHECK (state IN ('pending', 'done', 'unknown')),
    refused             boolean     NOT NULL DEFAULT false,
    answer              json,                     -- canonical JSON; json, not jsonb: it must hold \u0000 too
    started_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    answered_at         timestamptz,
    PRIMARY KEY (consumer, message_id, n)
) PARTITION BY RANGE (message_id);

CREATE INDEX intents_open ON {schema}.intents (message_id) WHERE state <> 'done';

-- The outbox: "this message is to be sent". Column names of Debezium's outbox event router, so that a relay, a reader of
-- the write-ahead log and Debezium can share it. The message id is not unique: a redrive may meet its predecessor.
CREATE TABLE {schema}.outbox (
    position      bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id            text        NOT NULL,
    aggregatetype text        NOT NULL,           -- the first part of the type: Debezium routes by it
    aggregateid   text,                           -- the subject: the key whose order is kept; NULL: no order
    type          text        NOT NULL,
    source        text        NOT NULL,
    time          timestamptz NOT NULL,
    traceparent   text,
    payload       bytea       NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    attempts      integer     NOT NULL DEFAULT 0,
    error         text,
    retry_at      timestamptz                     -- NULL: now
);

CREATE INDEX outbox_key ON {schema}.outbox (aggregateid, position) WHERE aggregateid IS NOT NULL;

-- Bookkeeping beside the rows: failed attempts.
CREATE TABLE {schema}.attempts (
    consumer    text        NOT NULL,
    message_id  uuid        NOT NULL,
    n           integer     NOT NULL,
    error       text        NOT NULL,
    failed_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (consumer, message_id)
);
CREATE INDEX attempts_age ON {schema}.attempts (message_id);

-- Bookkeeping: what was parked, whole, with its reason. Two bodies under one id are two rows.
CREATE TABLE {schema}.parked (
    consumer    text        NOT NULL,
    message_id  text        NOT NULL,             -- of a message without an id: its source and delivery id
    fingerprint bytea       NOT NULL,
    reason      text        NOT NULL,
    detail      text        NOT NULL,
    attempts    integer     NOT NULL,
    source      text        NOT NULL,
    headers     json        NOT NULL,
    body        bytea       NOT NULL,
    parked_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (consumer, message_id, fingerprint)
);
CREATE INDEX parked_age ON {schema}.parked (parked_at);
CREATE INDEX parked_message ON {schema}.parked (message_id);

-- Which consumers use this schema, and how long each wants to recognise a duplicate: upkeep keeps the longest.
CREATE TABLE {schema}.consumers (
    name           text        PRIMARY KEY,
    window_seconds float8      NOT NULL,
    seen_at        timestamptz NOT NULL DEFAULT clock_timestamp()
);
