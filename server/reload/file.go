package reload

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/lockstepd/lockstep/server/config"
)

// staged is a file's new content, durable beside it and not yet in its place.
type staged struct {
	temp, path string
}

// stage writes the content beside the file, with the file's mode and owner. A
// symbolic link is followed, so that it stays one.
func stage(path string, data []byte) (*staged, error) {
	real, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		real, err = path, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot write %s: %w", path, err)
	}
	f, err := os.CreateTemp(filepath.Dir(real), "."+filepath.Base(real)+".*")
	if err != nil {
		return nil, fmt.Errorf("cannot write %s: %w", path, err)
	}
	s := &staged{f.Name(), real}
	if err := fill(f, real, data); err != nil {
		s.abort()
		return nil, fmt.Errorf("cannot write %s: %w", path, err)
	}
	return s, nil
}

// fill writes a staged file and makes it durable.
func fill(f *os.File, like string, data []byte) error {
	_, err := f.Write(data)
	if err == nil {
		err = imitate(f, like)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// imitate gives f the mode of the file that it replaces, and the owner where
// we may.
func imitate(f *os.File, like string) error {
	st, err := os.Stat(like)
	if errors.Is(err, fs.ErrNotExist) {
		return f.Chmod(0o644)
	}
	if err != nil {
		return err
	}
	chown(f, st)
	return f.Chmod(st.Mode().Perm())
}

// commit puts the content in the file's place.
func (s *staged) commit() error {
	if err := os.Rename(s.temp, s.path); err != nil {
		s.abort()
		return fmt.Errorf("cannot write %s: %w", s.path, err)
	}
	dir, err := os.Open(filepath.Dir(s.path))
	if err != nil {
		return fmt.Errorf("cannot make %s durable: %w", s.path, err)
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("cannot make %s durable: %w", s.path, err)
	}
	return nil
}

func (s *staged) abort() { _ = os.Remove(s.temp) }

// Store keeps the settings made by command over a restart of the daemon.
type Store interface {
	Load() ([]config.Setting, error)
	Save([]config.Setting) error
}

// FileStore is a Store in a file, usually in the state dir.
type FileStore string

// maxStore bounds what is read of the file.
const maxStore = 1 << 20

// Load reads the settings; none where there is no file.
func (f FileStore) Load() ([]config.Setting, error) {
	st, err := os.Stat(string(f))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && (!st.Mode().IsRegular() || st.Size() > maxStore) {
		err = errors.New("it is no regular file, or too large")
	}
	var data []byte
	if err == nil {
		data, err = os.ReadFile(string(f))
	}
	var out []config.Setting
	if err == nil {
		err = json.Unmarshal(data, &out)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the settings in %s: %w", string(f), err)
	}
	return out, nil
}

// Save writes the settings; without any the file goes.
func (f FileStore) Save(settings []config.Setting) error {
	if len(settings) == 0 {
		if err := os.Remove(string(f)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot remove the settings: %w", err)
		}
		return nil
	}
	data, err := json.MarshalIndent(settings, "", "  ")
	if err != nil {
		return fmt.Errorf("cannot encode the settings: %w", err)
	}
	s, err := stage(string(f), append(data, '\n'))
	if err != nil {
		return err
	}
	return s.commit()
}

// chown gives f the owner of the file that it replaces. Where we may not, it
// stays ours: the content matters more.
func chown(f *os.File, like fs.FileInfo) {
	if st, ok := like.Sys().(*syscall.Stat_t); ok {
		_ = f.Chown(int(st.Uid), int(st.Gid))
	}
}

// inode tells a file from another of the same name, size and time.
func inode(st fs.FileInfo) uint64 {
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		return s.Ino
	}
	return 0
}
