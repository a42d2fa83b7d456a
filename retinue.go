// Package retinue holds what every part of the project agrees on: its version.
// The patterns live in the rooms beside it (elector, ...); DESIGN.md is the map.
package retinue

// Version is the version of the multi-call binary, of its image tag and of the jobspecs' defaults.
const Version = "0.1.0"
