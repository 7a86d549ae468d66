-- The service's own tables. One account per order, so that a booking that happened twice shows as a wrong balance.
CREATE TABLE orders (
    id        text PRIMARY KEY,
    amount    bigint NOT NULL CHECK (amount > 0),
    status    text NOT NULL DEFAULT 'placed' CHECK (status IN ('placed', 'paid')),
    charge_id text
);

CREATE TABLE accounts (
    order_id text PRIMARY KEY,
    balance  bigint NOT NULL DEFAULT 0
);

-- What the variants remember of messages by themselves: `select_then_act.py` and `no_key.py` the first, `textbook.py` both.
CREATE TABLE processed (
    message_id text PRIMARY KEY
);

CREATE TABLE charges (
    message_id text PRIMARY KEY,
    status     text NOT NULL CHECK (status IN ('pending', 'done')),
    charge_id  text
);
