// An independent reader and writer of transparency logs for the tests: everything that is believed here is believed by Go's
// golang.org/x/mod/sumdb/note and tlog. One JSON request a line comes in, one JSON answer a line goes out.
package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const height = 8
const width = 1 << height

type request struct {
	Op      string
	Name    string            // origin, and name of the key
	Key     string            // verifier key; when signing, the signer key
	Note    []byte            // a signed checkpoint
	Proof   []byte            // a tlog-proof
	Files   map[string][]byte // a log's static files
	Entries [][]byte          // what a log holds
	Size    int64
	Old     int64
	Index   int64
	Root    []byte
	OldRoot []byte
	Leaf    []byte
	Path    []byte   // hashes, one after another
	Paths   [][]byte // the same for each index, or each old size
	Roots   [][]byte // of the trees of 1, 2, … entries
	Leaves  [][]byte
}

type answer struct {
	Error  string            `json:"error"`
	Size   int64             `json:"size"`
	Root   []byte            `json:"root"`
	Vkey   string            `json:"vkey"`
	Skey   string            `json:"skey"`
	Note   []byte            `json:"note"`
	Files  map[string][]byte `json:"files"`
	Record [][]byte          `json:"record"`
	Tree   [][]byte          `json:"tree"`
}

// -- reading --

// openCheckpoint believes what note.Open and tlog.ParseTree do. C2SP checkpoints are tlog trees under a first line of their own.
func openCheckpoint(msg []byte, vkey, origin string) (tlog.Tree, error) {
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		return tlog.Tree{}, err
	}
	opened, err := note.Open(msg, note.VerifierList(verifier))
	if err != nil {
		return tlog.Tree{}, err
	}
	if !strings.HasPrefix(opened.Text, origin+"\n") {
		return tlog.Tree{}, errors.New("another log")
	}
	return tlog.ParseTree([]byte("go.sum database tree" + strings.TrimPrefix(opened.Text, origin)))
}

type folder map[string][]byte

func (f folder) Height() int { return height }

func (f folder) SaveTiles([]tlog.Tile, [][]byte) {}

// ReadTiles finds tiles where C2SP tlog-tiles puts them: Go's own paths name the height, too.
func (f folder) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var found [][]byte
	for _, tile := range tiles {
		data, ok := f[c2spPath(tile)]
		if !ok {
			return nil, fmt.Errorf("no %s", c2spPath(tile))
		}
		found = append(found, data)
	}
	return found, nil
}

func c2spPath(tile tlog.Tile) string {
	return strings.Replace(tile.Path(), fmt.Sprintf("tile/%d/", height), "tile/", 1)
}

func bundlePath(index int64, size int64) string {
	tile := tlog.Tile{H: height, L: 0, N: index, W: width}
	if size < (index+1)*width {
		tile.W = int(size % width)
	}
	return strings.Replace(c2spPath(tile), "tile/0/", "tile/entries/", 1)
}

func splitBundle(data []byte) ([][]byte, error) {
	var entries [][]byte
	for len(data) > 0 {
		if len(data) < 2 || len(data) < 2+int(binary.BigEndian.Uint16(data)) {
			return nil, errors.New("truncated bundle")
		}
		end := 2 + int(binary.BigEndian.Uint16(data))
		entries, data = append(entries, data[2:end]), data[end:]
	}
	return entries, nil
}

// checkFolder reads every tile through tlog.TileHashReader and holds every entry against its leaf.
func checkFolder(files folder, vkey, origin string) (tlog.Tree, error) {
	tree, err := openCheckpoint(files["checkpoint"], vkey, origin)
	if err != nil {
		return tree, err
	}
	if tree.N == 0 {
		empty, _ := tlog.TreeHash(0, nil)
		if tree.Hash != empty {
			return tree, errors.New("the empty tree has another root")
		}
		return tree, nil
	}
	for start := int64(0); start < tree.N; start += width {
		var indexes []int64
		for i := start; i < min(start+width, tree.N); i++ {
			indexes = append(indexes, tlog.StoredHashIndex(0, i))
		}
		wanted, err := tlog.TileHashReader(tree, files).ReadHashes(indexes)
		if err != nil {
			return tree, err
		}
		entries, err := splitBundle(files[bundlePath(start/width, tree.N)])
		if err != nil {
			return tree, err
		}
		if len(entries) != len(wanted) {
			return tree, errors.New("a bundle has another number of entries")
		}
		for i, entry := range entries {
			if tlog.RecordHash(entry) != wanted[i] {
				return tree, errors.New("an entry is not what was logged")
			}
		}
	}
	return tree, nil
}

func min(a, b int64) int64 {
	if a < b {
		return a
	}
	return b
}

func hash(data []byte) (h tlog.Hash, err error) {
	if len(data) != tlog.HashSize {
		return h, errors.New("not a hash")
	}
	copy(h[:], data)
	return h, nil
}

func hashes(data []byte) ([]tlog.Hash, error) {
	var found []tlog.Hash
	for len(data) > 0 {
		h, err := hash(data[:min(int64(len(data)), tlog.HashSize)])
		if err != nil {
			return nil, err
		}
		found, data = append(found, h), data[tlog.HashSize:]
	}
	return found, nil
}

func checkRecord(path []byte, size int64, root []byte, index int64, leaf []byte) error {
	p, err := hashes(path)
	if err != nil {
		return err
	}
	r, err1 := hash(root)
	l, err2 := hash(leaf)
	if err1 != nil || err2 != nil {
		return errors.New("not a hash")
	}
	return tlog.CheckRecord(p, size, r, index, l)
}

func checkTree(path []byte, size int64, root []byte, old int64, oldRoot []byte) error {
	p, err := hashes(path)
	if err != nil {
		return err
	}
	r, err1 := hash(root)
	o, err2 := hash(oldRoot)
	if err1 != nil || err2 != nil {
		return errors.New("not a hash")
	}
	return tlog.CheckTree(p, size, r, old, o)
}

// checkProof reads C2SP tlog-proof text with the entry in its extra line.
func checkProof(proof []byte, vkey, origin string) error {
	cut := bytes.Index(proof, []byte("\n\n"))
	if cut < 0 {
		return errors.New("no checkpoint")
	}
	tree, err := openCheckpoint(proof[cut+2:], vkey, origin)
	if err != nil {
		return err
	}
	lines := strings.Split(string(proof[:cut]), "\n")
	if len(lines) < 3 || lines[0] != "c2sp.org/tlog-proof@v1" || !strings.HasPrefix(lines[1], "extra ") || !strings.HasPrefix(lines[2], "index ") {
		return errors.New("not a tlog-proof")
	}
	entry, err := base64.StdEncoding.DecodeString(lines[1][len("extra "):])
	if err != nil {
		return err
	}
	index, err := strconv.ParseInt(lines[2][len("index "):], 10, 64)
	if err != nil || strconv.FormatInt(index, 10) != lines[2][len("index "):] {
		return errors.New("not an index")
	}
	var path tlog.RecordProof
	for _, line := range lines[3:] {
		h, err := tlog.ParseHash(line)
		if err != nil {
			return err
		}
		path = append(path, h)
	}
	return tlog.CheckRecord(path, tree.N, tree.Hash, index, tlog.RecordHash(entry))
}

// -- writing --

func stored(entries [][]byte) (tlog.HashReader, error) {
	var all []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		found := make([]tlog.Hash, len(indexes))
		for i, index := range indexes {
			found[i] = all[index]
		}
		return found, nil
	})
	for i, entry := range entries {
		more, err := tlog.StoredHashes(int64(i), entry, reader)
		if err != nil {
			return nil, err
		}
		all = append(all, more...)
	}
	return reader, nil
}

func writeLog(entries [][]byte, skey, origin string) (map[string][]byte, error) {
	reader, err := stored(entries)
	if err != nil {
		return nil, err
	}
	size := int64(len(entries))
	files := map[string][]byte{}
	for _, tile := range tlog.NewTiles(height, 0, size) {
		if files[c2spPath(tile)], err = tlog.ReadTileData(tile, reader); err != nil {
			return nil, err
		}
	}
	for i, entry := range entries {
		path := bundlePath(int64(i)/width, size)
		files[path] = append(binary.BigEndian.AppendUint16(files[path], uint16(len(entry))), entry...)
	}
	root, err := tlog.TreeHash(size, reader)
	if err != nil {
		return nil, err
	}
	files["checkpoint"], err = sign(origin, size, root, skey)
	return files, err
}

func sign(origin string, size int64, root tlog.Hash, skey string) ([]byte, error) {
	signer, err := note.NewSigner(skey)
	if err != nil {
		return nil, err
	}
	text := strings.Replace(string(tlog.FormatTree(tlog.Tree{N: size, Hash: root})), "go.sum database tree", origin, 1)
	return note.Sign(&note.Note{Text: text}, signer)
}

func flat(path []tlog.Hash) []byte {
	data := []byte{}
	for _, h := range path {
		data = append(data, h[:]...)
	}
	return data
}

// prove gives every inclusion proof of the tree of all entries, and every consistency proof from 1, 2, … entries to it.
func prove(entries [][]byte, size int64, reply *answer) error {
	reader, err := stored(entries[:size])
	if err != nil {
		return err
	}
	for i := int64(0); i < size; i++ {
		record, err := tlog.ProveRecord(size, i, reader)
		if err != nil {
			return err
		}
		tree, err := tlog.ProveTree(size, i+1, reader)
		if err != nil {
			return err
		}
		reply.Record, reply.Tree = append(reply.Record, flat(record)), append(reply.Tree, flat(tree))
	}
	return nil
}

func answerTo(r request) (reply answer, err error) {
	var tree tlog.Tree
	switch r.Op {
	case "key":
		reply.Skey, reply.Vkey, err = note.GenerateKey(nil, r.Name)
	case "checkpoint":
		tree, err = openCheckpoint(r.Note, r.Key, r.Name)
	case "folder":
		tree, err = checkFolder(r.Files, r.Key, r.Name)
	case "record":
		err = checkRecord(r.Path, r.Size, r.Root, r.Index, r.Leaf)
	case "records": // one tree, every index
		for i, path := range r.Paths {
			if err = checkRecord(path, r.Size, r.Root, int64(i), r.Leaves[i]); err != nil {
				break
			}
		}
	case "tree":
		err = checkTree(r.Path, r.Size, r.Root, r.Old, r.OldRoot)
	case "trees": // one tree, every older one
		for i, path := range r.Paths {
			if err = checkTree(path, r.Size, r.Root, int64(i+1), r.Roots[i]); err != nil {
				break
			}
		}
	case "proof":
		err = checkProof(r.Proof, r.Key, r.Name)
	case "write":
		reply.Files, err = writeLog(r.Entries, r.Key, r.Name)
	case "prove":
		err = prove(r.Entries, r.Size, &reply)
	default:
		err = fmt.Errorf("no operation %q", r.Op)
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	reply.Size, reply.Root = tree.N, tree.Hash[:]
	return reply, err
}

func main() {
	in, out := bufio.NewReaderSize(os.Stdin, 1<<20), bufio.NewWriter(os.Stdout)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return
		}
		var r request
		if err := json.Unmarshal(line, &r); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		reply, err := answerTo(r)
		if err != nil {
			reply.Error = err.Error()
		}
		data, _ := json.Marshal(reply)
		out.Write(append(data, '\n'))
		out.Flush()
	}
}
