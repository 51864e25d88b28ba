BEGIN TRANSACTION;
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
    project TEXT NOT NULL REFERENCES projects ON DELETE CASCADE, key TEXT NOT NULL, run TEXT NOT NULL,
    label TEXT NOT NULL, state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled')),
    queued REAL NOT NULL, attempt INTEGER NOT NULL DEFAULT 0, created REAL NOT NULL, started REAL, finished REAL,
    phase TEXT NOT NULL DEFAULT '', phase_done INTEGER NOT NULL DEFAULT 0, phase_total INTEGER NOT NULL DEFAULT 0,
    step INTEGER NOT NULL DEFAULT 0, steps INTEGER NOT NULL DEFAULT 0, loss REAL, tokens_per_second REAL,
    seconds_left REAL, error TEXT NOT NULL DEFAULT '', wanted TEXT NOT NULL DEFAULT '',
    anew INTEGER NOT NULL DEFAULT 0, deaths INTEGER NOT NULL DEFAULT 0, worker TEXT NOT NULL DEFAULT '',
    child INTEGER NOT NULL DEFAULT 0, child_identity TEXT NOT NULL DEFAULT '',
    UNIQUE (project, key)
) STRICT;
INSERT INTO "jobs" VALUES(1,'ea39f8449a721539','b48e39be2f0ce3fe','10d7884179631b74c66b0ffa5dc418ddacde922ab70f1aa99540e73bbf1e0cdb','{"budget":null,"dtype":"bf16","evaluation":{"max_new_tokens":8,"n_generate":4,"n_loss":4,"split":"test"},"machine":"","method":{"kind":"untuned","shots":0,"version":1},"model":{"name":"small-llama","revision":"7f5eea5bdc7c34ee8deaa2151d73a52458c9997c5a2475ec0e8d9b5ed1aae1d8"},"platform":"cpu","purpose":"quality","seed":0,"task":{"data_sha256":"e88c9dd18b7fb4b70ecce7b540278c91c04c6c582d882cfaa785a36eb712fe70","name":"files","version":1}}','untuned on files, model small-llama, seed 0, test','done',1.79594071662021827e+09,1,1.79594071662021827e+09,1.79594072098925757e+09,1.79594097467354965e+09,'scoring texts',0,0,0,0,NULL,NULL,NULL,'','',0,0,'',0,'10cc6f6c-7474-458c-90c5-4ceb0a9ff5ab/4843438');
INSERT INTO "jobs" VALUES(2,'a5ac6ba49a35dc44','b48e39be2f0ce3fe','a778ecd8c9250fa19bfb6d82388fa35fc25935a04bea8f186c9d0ddc5e4212cd','{"budget":{"batch_size":8,"learning_rate":0.001,"max_grad_norm":1.0,"max_length":512,"tokens":600,"warmup":0.1,"weight_decay":0.0},"dtype":"bf16","evaluation":{"max_new_tokens":8,"n_generate":4,"n_loss":4,"split":"test"},"machine":"","method":{"alpha":32.0,"dropout":0.0,"kind":"lora","rank":1,"targets":["q_proj","v_proj"],"version":1},"model":{"name":"small-llama","revision":"7f5eea5bdc7c34ee8deaa2151d73a52458c9997c5a2475ec0e8d9b5ed1aae1d8"},"platform":"cpu","purpose":"quality","seed":0,"task":{"data_sha256":"e88c9dd18b7fb4b70ecce7b540278c91c04c6c582d882cfaa785a36eb712fe70","name":"files","version":1}}','lora on files, rank 1, targets q_proj+v_proj, rate 0.001, 600 tokens, model small-llama, seed 0, test','done',1.79594071662021827e+09,1,1.79594071662021827e+09,1.79594097471781826e+09,1.79594132221212029e+09,'scoring texts',0,0,3,3,4.0585641860961914e+00,4.03421822431045171e+01,NULL,'','',0,0,'',0,'10cc6f6c-7474-458c-90c5-4ceb0a9ff5ab/4868810');
INSERT INTO "jobs" VALUES(3,'c23dca45b682f251','b48e39be2f0ce3fe','c9de881cc0f4a665055ea99e102ae3cfd85d9456a56c1902f153dd7d7cc4154e','{"budget":{"batch_size":8,"learning_rate":0.001,"max_grad_norm":1.0,"max_length":512,"tokens":600,"warmup":0.1,"weight_decay":0.0},"dtype":"bf16","evaluation":{"max_new_tokens":8,"n_generate":4,"n_loss":4,"split":"test"},"machine":"","method":{"alpha":32.0,"dropout":0.0,"kind":"lora","rank":1,"targets":["q_proj","v_proj"],"version":1},"model":{"name":"small-llama","revision":"7f5eea5bdc7c34ee8deaa2151d73a52458c9997c5a2475ec0e8d9b5ed1aae1d8"},"platform":"cpu","purpose":"quality","seed":1,"task":{"data_sha256":"e88c9dd18b7fb4b70ecce7b540278c91c04c6c582d882cfaa785a36eb712fe70","name":"files","version":1}}','lora on files, rank 1, targets q_proj+v_proj, rate 0.001, 600 tokens, model small-llama, seed 1, test','queued',1.79594133562400126e+09,0,1.79594133562400126e+09,NULL,NULL,'',0,0,0,0,NULL,NULL,NULL,'','',0,0,'',0,'');
CREATE TABLE plan_jobs (
    plan TEXT NOT NULL REFERENCES plans ON DELETE CASCADE, position INTEGER NOT NULL,
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE, cached INTEGER NOT NULL,
    PRIMARY KEY (plan, job)
) STRICT;
INSERT INTO "plan_jobs" VALUES('c07d5e057a58955a',0,'ea39f8449a721539',0);
INSERT INTO "plan_jobs" VALUES('c07d5e057a58955a',1,'a5ac6ba49a35dc44',0);
INSERT INTO "plan_jobs" VALUES('3171c3315ff57944',0,'ea39f8449a721539',1);
INSERT INTO "plan_jobs" VALUES('3171c3315ff57944',1,'a5ac6ba49a35dc44',1);
INSERT INTO "plan_jobs" VALUES('3171c3315ff57944',2,'c23dca45b682f251',0);
CREATE TABLE plans (
    id TEXT PRIMARY KEY, project TEXT NOT NULL REFERENCES projects ON DELETE CASCADE, name TEXT NOT NULL,
    created REAL NOT NULL
) STRICT;
INSERT INTO "plans" VALUES('c07d5e057a58955a','b48e39be2f0ce3fe','Plan 1',1.79594071662021827e+09);
INSERT INTO "plans" VALUES('3171c3315ff57944','b48e39be2f0ce3fe','Plan 2',1.79594133562400126e+09);
CREATE TABLE points (
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE, step INTEGER NOT NULL, loss REAL NOT NULL,
    PRIMARY KEY (job, step)
) STRICT, WITHOUT ROWID;
INSERT INTO "points" VALUES('a5ac6ba49a35dc44',1,4.49726009368896484e+00);
INSERT INTO "points" VALUES('a5ac6ba49a35dc44',2,4.10805368423461914e+00);
INSERT INTO "points" VALUES('a5ac6ba49a35dc44',3,4.0585641860961914e+00);
CREATE TABLE projects (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, created REAL NOT NULL, filename TEXT NOT NULL, sha256 TEXT NOT NULL,
    columns TEXT NOT NULL, split TEXT NOT NULL, instruction TEXT NOT NULL, caps TEXT NOT NULL,
    removed INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO "projects" VALUES('b48e39be2f0ce3fe','Colours',1.79594071655691194e+09,'colours.csv','79bbb2931c56f5502edac1c2cc8460df727b9c58c9fb21255e878a28b976eba9','{"input": "ask", "target": "answer", "instruction": null, "group": null}','{"seed": 0, "fractions": [0.8, 0.1, 0.1]}','{input}','{"bytes": 100000000, "rows": 200000, "cell_chars": 100000, "columns": 200, "cells": 5000000}',0);
CREATE TABLE requests (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
    project TEXT REFERENCES projects ON DELETE CASCADE, kind TEXT NOT NULL, payload TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'working', 'done', 'failed', 'withdrawn')),
    created REAL NOT NULL, tries INTEGER NOT NULL DEFAULT 0, text TEXT NOT NULL DEFAULT '',
    result TEXT NOT NULL DEFAULT 'null', error TEXT NOT NULL DEFAULT ''
) STRICT;
INSERT INTO "requests" VALUES(1,'230c469e0f3d1760','b48e39be2f0ce3fe','preflight','{"project": "b48e39be2f0ce3fe", "runs": []}','waiting',1.79594133564865684e+09,0,'','null','');
CREATE TABLE workers (
    id TEXT PRIMARY KEY, pid INTEGER NOT NULL, identity TEXT NOT NULL, host TEXT NOT NULL, started REAL NOT NULL,
    beat REAL NOT NULL
) STRICT;
CREATE INDEX jobs_by_state ON jobs (state, queued);
CREATE INDEX plans_of_job ON plan_jobs (job);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('jobs',3);
INSERT INTO "sqlite_sequence" VALUES('requests',1);
COMMIT;
PRAGMA user_version = 1;
