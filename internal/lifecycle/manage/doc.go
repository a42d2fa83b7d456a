// Package manage is the management API of one task (section 3 of the paper):
// upward health, metrics, profiles, configuration and logs; downward pause,
// resume, drain, save and "replicate yourself". It is HTTP with JSON, below /v1,
// on a Unix socket in alloc/tmp, and the same through
// `nomad alloc exec ALLOC @retinue GET /v1/...` under Nomad's own ACL.
//
// It needs no code in the application: what the application answers on its own
// socket ($RETINUE_SOCK) is passed on, and what it does not answer, the driver
// answers from the process, its cgroup, Nomad's log files and its configuration.
//
// What it promises: every answer but a log, a profile or a metric is JSON; an
// error is {"error", "message", "hint"} with the status codes of openapi.json;
// no request reads outside the task, and no secret of its configuration is shown.
package manage
