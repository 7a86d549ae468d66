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
