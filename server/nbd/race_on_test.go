//go:build race

package nbd_test

const raceDetector = true
