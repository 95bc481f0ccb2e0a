// The tables of skerry.db, as migrations: entry i leads from schema i to i + 1. Internal to server/store.
#pragma once

namespace skerry::server {

inline constexpr const char* kMigrations[] = {
    R"sql(
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE runs (
  run_id TEXT PRIMARY KEY, name TEXT NOT NULL, strategy TEXT NOT NULL, spec_hash TEXT NOT NULL, spec_json TEXT NOT NULL,
  status TEXT NOT NULL, status_reason TEXT NOT NULL, created_ms INTEGER NOT NULL, ended_ms INTEGER NOT NULL);

CREATE TABLE machine_rows (
  run_id TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (run_id, key)) WITHOUT ROWID;

-- One row for each task whose update was accepted or decided; `sequence` is its last receipt.
CREATE TABLE tasks (
  id INTEGER PRIMARY KEY, task_id TEXT NOT NULL UNIQUE, run_id TEXT NOT NULL, node TEXT NOT NULL, kind INTEGER NOT NULL,
  state INTEGER NOT NULL, exchange INTEGER NOT NULL, version INTEGER NOT NULL, reason TEXT NOT NULL, weight REAL NOT NULL,
  examples INTEGER NOT NULL, metrics TEXT NOT NULL, signature BLOB NOT NULL, body_sha256 TEXT NOT NULL, spooled TEXT NOT NULL,
  sequence INTEGER NOT NULL);
CREATE INDEX tasks_accepted ON tasks (run_id) WHERE state = 2;

-- Signed updates while their exchange is open.
CREATE TABLE bodies (task INTEGER PRIMARY KEY, body BLOB NOT NULL);

CREATE TABLE receipts (
  sequence INTEGER PRIMARY KEY, kind TEXT NOT NULL, run_id TEXT NOT NULL, subject TEXT NOT NULL, node TEXT NOT NULL,
  exchange INTEGER NOT NULL, version INTEGER NOT NULL, reason TEXT NOT NULL, time_ms INTEGER NOT NULL, hash BLOB NOT NULL);

CREATE TABLE decisions (
  run_id TEXT NOT NULL, state INTEGER NOT NULL, name TEXT NOT NULL, updates INTEGER NOT NULL,
  PRIMARY KEY (run_id, state, name)) WITHOUT ROWID;

-- `…_bytes` is NULL where the bytes are cargo (or, for the state, a file).
CREATE TABLE versions (
  id INTEGER PRIMARY KEY, run_id TEXT NOT NULL, fragment TEXT NOT NULL, version INTEGER NOT NULL, exchange INTEGER NOT NULL,
  whole_id TEXT NOT NULL, whole_size INTEGER NOT NULL, step_id TEXT NOT NULL, step_size INTEGER NOT NULL,
  step_encoding TEXT NOT NULL, state_name TEXT NOT NULL, state_size INTEGER NOT NULL, counted_digest TEXT NOT NULL,
  chain TEXT NOT NULL, sequence INTEGER NOT NULL, time_ms INTEGER NOT NULL, kept INTEGER NOT NULL,
  whole_bytes BLOB, step_bytes BLOB, state_bytes BLOB,
  UNIQUE (run_id, fragment, version));
CREATE INDEX versions_by_whole ON versions (whole_id) WHERE whole_bytes IS NULL;
CREATE INDEX versions_by_step ON versions (step_id) WHERE step_bytes IS NULL AND step_id <> '';

CREATE TABLE metrics (
  id INTEGER PRIMARY KEY, run_id TEXT NOT NULL, kind TEXT NOT NULL, fragment TEXT NOT NULL, exchange INTEGER NOT NULL,
  version INTEGER NOT NULL, time_ms INTEGER NOT NULL, updates INTEGER NOT NULL, node TEXT NOT NULL, metrics TEXT NOT NULL);
CREATE INDEX metrics_by_run ON metrics (run_id, kind);

CREATE TABLE traffic (
  run_id TEXT NOT NULL, node TEXT NOT NULL, bytes_up INTEGER NOT NULL, bytes_down INTEGER NOT NULL,
  PRIMARY KEY (run_id, node)) WITHOUT ROWID;

CREATE TABLE audit (
  id INTEGER PRIMARY KEY, time_ms INTEGER NOT NULL, who TEXT NOT NULL, action TEXT NOT NULL, subject TEXT NOT NULL,
  detail TEXT NOT NULL);
)sql",
    // Every page carries a checksum (common/sqlite), which a program that knows only schema 1 would not write.
    "",
};

}  // namespace skerry::server
