//go:build race

package messenger

const raceDetector = true
