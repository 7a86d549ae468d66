-- The service's own tables, its queue among them. No key keeps a booking from happening twice: a wrong balance would show it.
CREATE TABLE IF NOT EXISTS orders (
    id        text PRIMARY KEY,
    amount    bigint NOT NULL CHECK (amount > 0),
    status    text NOT NULL DEFAULT 'placed' CHECK (status IN ('placed', 'paid', 'declined')),
    charge_id text
);

CREATE TABLE IF NOT EXISTS accounts (
    order_id text PRIMARY KEY,
    balance  bigint NOT NULL DEFAULT 0
);

-- The queue: at-least-once, as any. A job that was received is hidden for a while, and comes again unless it is deleted.
CREATE TABLE IF NOT EXISTS jobs (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    headers    jsonb NOT NULL,
    body       bytea NOT NULL,
    deliveries integer NOT NULL DEFAULT 0,
    visible_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Jobs that a person must look at, each with its reason.
CREATE TABLE IF NOT EXISTS dead_letters (
    job_id  bigint PRIMARY KEY,
    headers jsonb NOT NULL,
    body    bytea NOT NULL,
    reason  text NOT NULL
);
