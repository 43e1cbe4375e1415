// Package torture lets a real kernel use a device while hosts die under it. A
// Machine is User Mode Linux, a kernel that runs as a program, with a file
// system on the device, attached by the kernel's own NBD client. Its writers
// fsync files and say so on the console; whatever they said must be there,
// whole, in whatever machine mounts the file system next.
package torture
