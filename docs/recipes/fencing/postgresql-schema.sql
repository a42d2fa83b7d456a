-- Rows that leaders change: each carries the token of the leader that wrote it last.
CREATE TABLE account (
  id      text   PRIMARY KEY,
  balance bigint NOT NULL,
  fence   bigint NOT NULL DEFAULT 0
);

-- Rows that leaders only add have nothing to compare with, so one row is the fence for all of them.
CREATE TABLE fence (
  resource text   PRIMARY KEY,
  token    bigint NOT NULL
);
INSERT INTO fence (resource, token) VALUES ('ledger', 0);

CREATE TABLE ledger (
  entry bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  what  text   NOT NULL,
  fence bigint NOT NULL
);
